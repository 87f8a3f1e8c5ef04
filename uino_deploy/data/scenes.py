"""A scene: a few sprites, each rotated, sheared and coloured, on a darker noisy background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uino_deploy.data.glyphs import INK_SIZE

SCENE_SIZE = 112
"""Side of a scene in pixels."""

_SIZES = (0.34, 0.62)  # mean of the ink's width and height, of the scene's side
_GROUND = (0.0, 0.4)  # grey values of the ground; glyphs are lighter
_INK = (0.55, 1.0)
_SLOPE = 0.1  # how far the ground's grey values drift from one edge to the other
_NOISE = (0.01, 0.05)  # standard deviation
_TRIES = 6
_OVERLAP = 0.03  # of a sprite's ink; one that would hide more of others is tried smaller

_Coverage = NDArray[np.uint8]
_Window = tuple[slice, slice]


@dataclass(frozen=True)
class Deformation:
    """Limits of a sprite's deformation; each number is the end of a symmetric range.

    Attributes:
        rotation: in degrees.
        shear: horizontal shift for each unit of height.
        stretch: logarithm of the factor by which width grows and height shrinks.
        wobble: how far the points of a 3x3 grid on the sprite move, as a fraction of its side.
    """

    rotation: float = 20.0
    shear: float = 0.15
    stretch: float = 0.15
    wobble: float = 0.0


PLAIN = Deformation()
"""The deformation in the scenes that models are evaluated on."""

HANDWRITTEN = Deformation(shear=0.25, stretch=0.25, wobble=0.12)
"""A deformation that makes printed characters vary as written ones do."""


@dataclass(frozen=True)
class Scene:
    """A drawn image and its ground truth.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        masks: bool [G, S, S], the visible ink of every sprite that was placed; disjoint.
        placed: for every mask the index of its sprite in the list given to `compose_scene`.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    placed: tuple[int, ...]


def compose_scene(
    sprites: Sequence[_Coverage],
    rng: np.random.Generator,
    size: int = SCENE_SIZE,
    deformation: Deformation = PLAIN,
) -> Scene:
    """Draw sprites into one image, in a random order, later ones over earlier ones.

    Args:
        sprites: coverage, uint8, square. The first is always placed, and one more; any other
            is left out if it does not fit.
        rng: the only source of randomness.
        size: the scene's side S in pixels.
        deformation: applied to every sprite.
    """
    canvas = _ground(rng, size)  # [3, S, S]: planes of colour are the faster layout
    masks: dict[int, NDArray[np.bool_]] = {}
    taken = np.zeros((size, size), dtype=np.bool_)
    order: list[int] = rng.permutation(len(sprites)).tolist()
    last = next((index for index in reversed(order) if index > 0), 0)
    for index in order:
        needed = index == 0 or (index == last and not masks.keys() - {0})
        placement = _place(sprites[index], taken, rng, deformation, needed)
        if placement is None:
            continue
        coverage, window = placement
        alpha = coverage / np.float32(255)
        colour = rng.uniform(*_INK, size=(3, 1, 1)).astype(np.float32)
        under = canvas[:, window[0], window[1]]
        under += alpha * (colour - under)
        mask = np.zeros((size, size), dtype=np.bool_)
        mask[window] = coverage > 127
        masks = {each: earlier & ~mask for each, earlier in masks.items()} | {index: mask}
        taken |= mask
    canvas += np.float32(rng.uniform(*_NOISE)) * _noise(rng, size)
    image = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    placed = tuple(sorted(masks))
    visible = np.stack([masks[index] for index in placed])
    return Scene(np.ascontiguousarray(image.transpose(1, 2, 0)), visible, placed)


def _place(
    sprite: _Coverage,
    taken: NDArray[np.bool_],
    rng: np.random.Generator,
    deformation: Deformation,
    always: bool,
) -> tuple[_Coverage, _Window] | None:
    """Warp a sprite and find a place where it hides little of the others."""
    size = len(taken)
    smallest, largest = _SIZES
    for _ in range(_TRIES):
        largest = rng.uniform(smallest, largest)  # each attempt is smaller than the one before
        coverage = _warp(sprite, largest * size, rng, deformation)
        height, width = (min(side, size) for side in coverage.shape)
        coverage = coverage[:height, :width]
        corner = _emptiest_corner(taken, height, width, rng)
        window = (slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width))
        ink = coverage > 127
        if np.count_nonzero(ink & taken[window]) <= _OVERLAP * np.count_nonzero(ink):
            return coverage, window
    return (coverage, window) if always else None


def _emptiest_corner(
    taken: NDArray[np.bool_], height: int, width: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Return the upper left corner of a box that covers the least; ties are broken at random."""
    total = np.zeros((len(taken) + 1, len(taken) + 1), dtype=np.int32)
    taken.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, out=total[1:, 1:])
    covered = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    best = np.flatnonzero(covered == covered.min())
    row, column = divmod(int(best[rng.integers(len(best))]), covered.shape[1])
    return row, column


def _warp(
    sprite: _Coverage, size: float, rng: np.random.Generator, deformation: Deformation
) -> _Coverage:
    """Scale a sprite to about `size` pixels and deform it; return its ink's bounding box."""
    side = len(sprite)
    angle = np.deg2rad(deformation.rotation * rng.uniform(-1, 1))
    shear = deformation.shear * rng.uniform(-1, 1)
    stretch = np.exp(deformation.stretch * rng.uniform(-1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[stretch, shear], [0, 1 / stretch]]) * (size / INK_SIZE)
    reach = side * (1 + 2 * deformation.wobble)  # a wobble may push ink outwards
    width, height = (int(length) + 2 for length in np.abs(forward).sum(axis=1) * reach)
    # The points of the sprite that map to the corners of the warped picture's four quarters.
    xs, ys = (0, width // 2, width), (0, height // 2, height)
    corners = np.array([[(x, y) for x in xs] for y in ys]) - (width / 2, height / 2)
    sources = corners @ np.linalg.inv(forward).T + side / 2
    if deformation.wobble:
        strength = side * deformation.wobble * rng.uniform()
        sources += strength * rng.uniform(-1, 1, size=sources.shape)
    mesh = [
        (
            (xs[i], ys[j], xs[i + 1], ys[j + 1]),
            (*sources[j, i], *sources[j + 1, i], *sources[j + 1, i + 1], *sources[j, i + 1]),
        )
        for j in range(2)
        for i in range(2)
    ]
    warped = Image.fromarray(sprite).transform(
        (width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
    )
    return np.asarray(warped.crop(warped.getbbox()))


def _ground(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a dark ground that drifts linearly in colour, float32 [3, size, size]."""
    colour = rng.uniform(*_GROUND, size=(3, 1, 1)).astype(np.float32)
    slope = rng.uniform(-_SLOPE / 2, _SLOPE / 2, size=(2, 3, 1, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    ground: NDArray[np.float32] = (colour + slope[0] * ramp[:, None]) + slope[1] * ramp
    return ground


def _noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return unit noise, float32 [3, size, size]: a random cut of one sheet, for speed."""
    row, column = rng.integers(256, size=2)
    return _noise_sheet(size + 256)[:, row : row + size, column : column + size]


@cache
def _noise_sheet(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((3, size, size), dtype=np.float32)
