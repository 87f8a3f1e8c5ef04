"""Evaluates any segmenter on episodes: the PyTorch model, a bundle's predictor, or a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.episodes import Episode, draw_episode
from uino_deploy.data.pools import Pool
from uino_deploy.data.scenes import SCENE_SIZE
from uino_deploy.evaluation.metrics import SegmentationScore

EVALUATION_SEED = 2
"""Of the episodes that models are judged on; training draws with its own seed."""

Segment = Callable[[Episode], NDArray[np.generic]]
"""From an episode to the query's predicted mask [S, S], non-zero where the class is."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_episodes`, in per cent.

    Attributes:
        miou: mean over classes of their accumulated IoU.
        fb_iou: mean of the foreground's and the background's IoU.
        episodes: how many were drawn.
    """

    miou: float
    fb_iou: float
    episodes: int


def evaluate_episodes(
    segment: Segment,
    pool: Pool,
    episodes: int,
    *,
    seed: int = EVALUATION_SEED,
    shots: int = 1,
    size: int = SCENE_SIZE,
    done: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Segment the queries of a pool's episodes and score the masks at the scenes' own size.

    Args:
        segment: what is judged.
        pool: the classes.
        episodes: how many to draw.
        seed: of the episodes.
        shots: support scenes of each episode.
        size: the scenes' side in pixels.
        done: called after each episode.
    """
    score = SegmentationScore(len(pool.labels))
    for index in range(episodes):
        episode = draw_episode(pool, seed, index, shots, size)
        score.add(episode.label, segment(episode), episode.query.mask)
        done()
    return Evaluation(score.miou, score.fb_iou, episodes)


def every_glyph(episode: Episode) -> NDArray[np.bool_]:
    """Mark all glyphs, without matching: an oracle of saliency, the bar that matching must beat."""
    return np.asarray(episode.query.scene.masks.any(axis=0))
