"""Pools of classes that episodes draw from: base glyphs, held-out glyphs, handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.digits import digit_sprites
from uino_deploy.data.glyphs import STROKES, base_and_held_out, fonts_with, glyph_sprite

PoolName = Literal["base", "held-out", "digits"]
SpriteOf = Callable[[int, np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True)
class Pool:
    """Classes and how to draw one of them.

    Attributes:
        name: what the pool is called.
        labels: one label for each class, in the order of the class numbers.
        sprite: from a class number and a generator, a sprite: coverage, uint8, 0 outside.
    """

    name: PoolName
    labels: tuple[str, ...]
    sprite: SpriteOf


@cache
def load_pool(name: PoolName) -> Pool:
    """Return a pool of classes.

    Raises:
        DependencyError: what draws it is not installed: matplotlib or scikit-learn.
    """
    if name == "digits":
        return _digits()
    base, held_out = base_and_held_out()
    return _glyphs(name, base if name == "base" else held_out)


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
