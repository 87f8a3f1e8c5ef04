"""Scikit-learn's real handwritten digits as sprites: classes that no glyph training has seen."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uino_deploy.data.glyphs import fit_sprite
from uino_deploy.dependencies import require

_INK = 16.0  # the data set's grey values run from 0 to 16
_ENLARGE = 16
_GAIN = 8.0  # the edge of a digit is then about as sharp as that of a glyph


@cache
def digit_sprites() -> tuple[tuple[NDArray[np.uint8], ...], ...]:
    """Return every handwritten digit, grouped by class 0 to 9, as coverage like a glyph's.

    Raises:
        DependencyError: scikit-learn is not installed.
    """
    require("train", "sklearn")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped] # it ships no types

    data = load_digits()
    return tuple(
        tuple(_sprite(image) for image in data.images[data.target == digit]) for digit in range(10)
    )


def _sprite(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Enlarge an 8x8 drawing and sharpen its blurred edge."""
    height, width = image.shape
    smooth = Image.fromarray(np.pad(image / _INK, 1).astype(np.float32)).resize(
        ((width + 2) * _ENLARGE, (height + 2) * _ENLARGE), Image.Resampling.BICUBIC
    )
    coverage = np.clip((np.asarray(smooth) - 0.5) * _GAIN + 0.5, 0, 1)
    return fit_sprite(Image.fromarray((255 * coverage).astype(np.uint8)))
