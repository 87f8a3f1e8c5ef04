"""Scikit-learn's handwritten digits as sprites: classes that training on glyphs never sees."""

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
        tuple(
            enlarge(image.astype(np.float32) / _INK) for image in data.images[data.target == digit]
        )
        for digit in range(10)
    )


def enlarge(drawing: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Make a sprite from a coarse drawing: enlarge it and sharpen its blurred edge.

    Args:
        drawing: coverage [h, w], 0 to 1, a few cells per side; some cell is nearly full.

    Returns:
        Coverage [SPRITE_SIZE, SPRITE_SIZE], as `fit_sprite` makes it.
    """
    height, width = drawing.shape
    smooth = Image.fromarray(np.pad(drawing, 1)).resize(
        ((width + 2) * _ENLARGE, (height + 2) * _ENLARGE), Image.Resampling.BICUBIC
    )
    # Where a thin stroke fills no cell by half, half of the darkest cell is the edge.
    edge = min(0.5, 0.5 * float(drawing.max()))
    coverage = np.clip((np.asarray(smooth) - edge) * _GAIN + 0.5, 0, 1)
    return fit_sprite(Image.fromarray((255 * coverage).astype(np.uint8)))
