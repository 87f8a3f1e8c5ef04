"""Presence: whether an image shows a class at all, from what was marked and the class's prototypes.

A model of this kind marks something in every image. The mean token of what it marked is compared
with the class's two prototypes: the more it resembles the object than the background, the likelier
the object is there. A class's calibration turns that into a score from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from uino_deploy.images import Float32

Vectors = TypeVar("Vectors", npt.NDArray[np.float32], npt.NDArray[np.float64])

MIN_SCORE = 0.5
"""A class counts as present from this score on, unless the caller says otherwise."""

_LEAST = 0.05  # a class's shots are taken to resemble it by at least this
_STEEPNESS = 4.0  # the score is 0.88 for what resembles the class as its shots do
_FLATTEST = 0.01


@dataclass(frozen=True)
class Calibration:
    """A class's line between present and absent.

    Attributes:
        middle: the resemblance whose score is 0.5.
        scale: how much more gives a score of 0.73; above 0.
    """

    middle: float
    scale: float

    def score(self, resemblance: float) -> float:
        """Return the presence, 0 to 1, for a resemblance."""
        steps = (resemblance - self.middle) / self.scale
        return 1 / (1 + math.exp(-min(max(steps, -30.0), 30.0)))


def calibrate(shots: Sequence[float], negatives: Sequence[float] = ()) -> Calibration:
    """Return the line halfway between a class's shots and images without it.

    Without negatives, images without the class are taken to be as near to the object as to the
    background, a resemblance of 0. One shot says too little for that: the line itself is then 0.

    Args:
        shots: the resemblance of each shot, found by a class that does not know it.
        negatives: that of images that do not show the class.
    """
    present = max(float(np.median(shots)), _LEAST)
    assumed = 0.0 if len(shots) > 1 else -present
    absent = min(float(np.median(negatives)) if len(negatives) else assumed, present)
    return Calibration((present + absent) / 2, max((present - absent) / _STEEPNESS, _FLATTEST))


def resemblance(logits: Float32, tokens: Float32, prototypes: Float32) -> float:
    """Return how much more the marked area resembles a class than the background around it.

    Args:
        logits: [4h, 4w], a query's.
        tokens: [N, D], the query's, of the encoder's last layer; N is h * w.
        prototypes: [2, D], the class's foreground and background.

    Returns:
        The difference of two cosines, -2 to 2.
    """
    grid = math.isqrt(len(tokens))
    cells = logits.reshape(grid, logits.shape[0] // grid, grid, logits.shape[1] // grid)
    # Relative to the largest: where almost nothing is marked, probabilities would all round to 0.
    logarithms = -np.logaddexp(0, -cells.astype(np.float64))
    share = np.exp(logarithms - logarithms.max()).mean(axis=(1, 3)).ravel()
    marked = unit(share @ tokens)
    foreground, background = unit(prototypes.astype(np.float64))
    return float(marked @ foreground - marked @ background)


def unit(vectors: Vectors) -> Vectors:
    """Return vectors [..., D] scaled to length 1, in their own type; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(length, 1e-12)
    return scaled
