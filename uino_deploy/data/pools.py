"""Pools of classes that episodes draw from: glyphs, invented characters, handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uino_deploy.data.digits import digit_sprites, enlarge
from uino_deploy.data.glyphs import STROKES, base_and_held_out, fonts_with, glyph_sprite
from uino_deploy.data.invented import draw_invented

PoolName = Literal["base", "held-out", "invented", "digits"]
SpriteOf = Callable[[int, np.random.Generator], NDArray[np.uint8]]

INVENTED = 400
"""Invented characters that training draws from."""

_ROUGH = (11, 16)  # cells along a side of a rough sprite, both ends included


@dataclass(frozen=True)
class Pool:
    """A set of classes, and the function that draws them.

    Attributes:
        name: the pool's name.
        labels: one label for each class, in the order of the class numbers.
        sprite: draws a class number with a generator; returns coverage, uint8, 0 outside.
    """

    name: PoolName
    labels: tuple[str, ...]
    sprite: SpriteOf


@cache
def load_pool(name: PoolName) -> Pool:
    """Return a pool of classes.

    Raises:
        DependencyError: matplotlib or scikit-learn, whichever draws the pool, is not installed.
    """
    if name == "digits":
        return _digits()
    if name == "invented":
        return Pool(name, tuple(f"invented {n}" for n in range(INVENTED)), draw_invented)
    base, held_out = base_and_held_out()
    return _glyphs(name, base if name == "base" else held_out)


def roughened(pool: Pool, share: float) -> Pool:
    """Return the pool with a share of its sprites drawn on a grid as coarse as the digits'.

    Args:
        pool: the pool.
        share: the fraction of such sprites, 0 to 1.
    """

    def sprite(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        drawn = pool.sprite(label, rng)
        if rng.uniform() >= share:
            return drawn
        cells = int(rng.integers(*_ROUGH, endpoint=True))
        coarse = Image.fromarray(drawn).resize((cells, cells), Image.Resampling.BOX)
        return enlarge(np.asarray(coarse, dtype=np.float32) / np.float32(255))

    return replace(pool, sprite=sprite)


def _glyphs(name: PoolName, characters: str) -> Pool:
    def sprite(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        fonts = fonts_with(characters[label])
        font = fonts[rng.integers(len(fonts))]
        return glyph_sprite(characters[label], font, STROKES[rng.integers(len(STROKES))])

    return Pool(name, tuple(characters), sprite)


def _digits() -> Pool:
    drawings = digit_sprites()

    def sprite(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        return drawings[label][rng.integers(len(drawings[label]))]

    return Pool("digits", tuple(str(digit) for digit in range(10)), sprite)
