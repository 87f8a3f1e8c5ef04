"""Made textures: grounds for training beside the photographs, of which there are few."""

from __future__ import annotations

import numpy as np
from PIL import Image

_GRIDS = (1, 2, 3, 5, 8, 14, 28, 56)  # cells a side: from one colour over gradients to grain
_COARSE = 2  # stripes are drawn on a grid coarser by this


def draw_texture(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a plain colour, gradient, clouds, tiles or grain, and over some of them stripes.

    Args:
        rng: the only source of randomness.
        size: the side S in pixels.

    Returns:
        RGB, [S, S].
    """
    texture = _grid(rng, size)
    if rng.uniform() < 0.5:
        texture = Image.blend(texture, _grid(rng, size), rng.uniform(0.1, 0.5))
    if rng.uniform() < 0.4:
        texture.paste(_grid(rng, size), mask=_stripes(rng, size))
    return texture


def _grid(rng: np.random.Generator, size: int) -> Image.Image:
    """Return a grid of random colours around one, enlarged smoothly or as tiles."""
    cells = _GRIDS[int(rng.integers(len(_GRIDS)))]
    spread = rng.uniform(5, 90)
    colours = rng.uniform(0, 255, size=3) + spread * rng.standard_normal((cells, cells, 3))
    small = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    smooth = rng.uniform() < 0.7
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return small.resize((size, size), way)


def _stripes(rng: np.random.Generator, size: int) -> Image.Image:
    """Return stripes of any direction, sharp or soft, as an alpha channel."""
    along = np.arange(0, size, _COARSE, dtype=np.float32) / size
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 25)
    phase = waves * (np.cos(angle) * along + np.sin(angle) * along[:, None])
    height = 0.5 + rng.uniform(0.5, 8) * np.sin(2 * np.pi * phase)
    levels = (255 * np.clip(height, 0, 1)).astype(np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BILINEAR)
