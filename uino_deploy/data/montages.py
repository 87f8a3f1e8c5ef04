"""A montage: a few things, each turned, lit and perhaps partly covered, on a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

MONTAGE_SIZE = 168
"""Side of a montage in pixels."""

SIZES = (0.25, 0.6)
"""Least and most of the longer side of a thing's picture, of the montage's."""

VISIBLE = 0.6
"""Least share of every thing that no other covers."""

_TURN = 30.0  # degrees
_STRETCH = 0.12  # logarithm of the factor by which width grows and height shrinks
_OUTSIDE = 0.1  # of a thing's box that may lie outside the montage, on each side
_WARPS, _PLACES = 6, 6  # tries to place a thing: sizes, each smaller, and places for each
_CROP = (0.3, 1.0)  # side of the photograph's crop, of its shorter side
_NOISE = (0.5, 6.0)  # standard deviation in grey levels
_SHADOW = 4  # a shadow is blurred on a grid coarser by this

_Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Montage:
    """A composed image and its ground truth.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        masks: bool [G, S, S], what is visible of every thing that was placed; disjoint.
        placed: for every mask the index of its thing in the list given to `compose_montage`.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    placed: tuple[int, ...]


@dataclass(frozen=True)
class Light:
    """How a thing is lit: each of its colours c becomes offset + gain * c.

    Attributes:
        gains: of red, green and blue.
        offset: in grey levels.
    """

    gains: tuple[float, float, float]
    offset: float

    @staticmethod
    def draw(rng: np.random.Generator, strength: float = 1.0) -> Light:
        """Draw brightness, contrast and a tint; a strength of 1 is a clear difference."""
        contrast = np.exp(0.3 * strength * rng.uniform(-1, 1))
        tint = np.exp(0.12 * strength * rng.uniform(-1, 1, size=3))
        shift = 30 * strength * rng.uniform(-1, 1)
        red, green, blue = (contrast * tint).tolist()
        return Light((red, green, blue), float(128 * (1 - contrast) + shift))

    def table(self) -> list[int]:
        """Return the new colour of each old one, 3 x 256, as `Image.point` takes it."""
        levels = np.arange(256) * np.array(self.gains)[:, None] + self.offset
        clipped: list[int] = np.clip(levels, 0, 255).astype(np.uint8).ravel().tolist()
        return clipped


def compose_montage(
    tiles: Sequence[Image.Image],
    photograph: Image.Image,
    rng: np.random.Generator,
    size: int = MONTAGE_SIZE,
    alike: int = 2,
    sizes: tuple[float, float] = SIZES,
    visible: float = VISIBLE,
) -> Montage:
    """Paste things onto a crop of a photograph, in a random order, later ones over earlier ones.

    A share of every thing's picture stays visible. A thing that finds no such place is left
    out; the first two always find one.

    Args:
        tiles: pictures of things, RGBA.
        photograph: RGB.
        rng: the only source of randomness.
        size: the montage's side S in pixels.
        alike: the first so many things are lit alike, so that their colours stay as near as they
            are in the tiles; each other thing has its own light.
        sizes: least and most of a thing's longer side, of the montage's.
        visible: least share of every thing that no other covers.
    """
    pile: list[_Thing] = []
    depths = rng.permutation(len(tiles)).tolist()
    for index, (tile, depth) in enumerate(zip(tiles, depths, strict=True)):
        if (thing := _place(tile, index, depth, pile, rng, size, sizes, visible)) is not None:
            pile.append(thing)
    common = Light.draw(rng)
    lights = [common if index < alike else Light.draw(rng) for index in range(len(tiles))]
    canvas = _ground(photograph, rng, size)
    shadow = _Shadow.draw(rng)
    for thing in sorted(pile, key=lambda thing: thing.depth):
        alpha = thing.picture.getchannel("A")
        shadow.fall(canvas, alpha, thing.corner)
        lit = thing.picture.convert("RGB").point(lights[thing.index].table())
        canvas.paste(lit, thing.corner, alpha)
    canvas = canvas.point(Light.draw(rng, 0.5).table())
    placed = tuple(thing.index for thing in pile)
    return Montage(_noisy(canvas, rng), np.array(_visible(pile)), placed)


@dataclass(frozen=True, eq=False)
class _Thing:
    """A warped thing, where it lies, and the pixels it takes up, whether covered or not."""

    index: int
    depth: int
    picture: Image.Image
    corner: tuple[int, int]
    mask: _Mask


def _place(
    tile: Image.Image,
    index: int,
    depth: int,
    pile: list[_Thing],
    rng: np.random.Generator,
    size: int,
    sizes: tuple[float, float],
    visible: float,
) -> _Thing | None:
    """Warp a thing and find a place where it and all others stay visible."""
    smallest, largest = sizes
    for _ in range(_WARPS):
        largest = rng.uniform(smallest, largest)
        picture = _warp(tile, largest * size, rng)
        ink = np.asarray(picture)[..., 3] > 127
        for _ in range(_PLACES):
            corner = _corner(picture, rng, size)
            thing = _Thing(index, depth, picture, corner, _framed(ink, corner, size))
            things = [*pile, thing]
            if all(
                np.count_nonzero(shown) >= visible * np.count_nonzero(each.mask)
                for shown, each in zip(_visible(things), things, strict=True)
            ):
                return thing
    return None


def _visible(things: list[_Thing]) -> list[_Mask]:
    """Return what the things above leave of every thing's mask."""
    masks: dict[int, _Mask] = {}
    covered: _Mask | None = None
    for thing in sorted(things, key=lambda thing: -thing.depth):
        masks[thing.index] = thing.mask if covered is None else thing.mask & ~covered
        covered = thing.mask if covered is None else covered | thing.mask
    return [masks[thing.index] for thing in things]


def _warp(tile: Image.Image, longer: float, rng: np.random.Generator) -> Image.Image:
    """Scale a picture so that its longer side is about `longer` pixels, turn and stretch it."""
    left, top, right, bottom = tile.getbbox() or (0, 0, *tile.size)
    scale = longer / max(right - left, bottom - top)
    angle = np.deg2rad(_TURN * rng.uniform(-1, 1))
    stretch = np.exp(_STRETCH * rng.uniform(-1, 1))
    flip = -1 if rng.integers(2) else 1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn * (flip * stretch * scale, scale / stretch)
    width, height = (
        int(side) + 2 for side in np.abs(forward) @ np.array([right - left, bottom - top])
    )
    (a, b), (d, e) = np.linalg.inv(forward).tolist()
    c = (left + right - a * width - b * height) / 2
    f = (top + bottom - d * width - e * height) / 2
    warped = tile.transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return warped.crop(warped.getchannel("A").getbbox())


def _corner(picture: Image.Image, rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Return a random upper left corner; a part of the picture may lie outside."""
    x, y = (
        round(rng.uniform(-_OUTSIDE * side, max(0, size - (1 - _OUTSIDE) * side)))
        for side in picture.size
    )
    return x, y


def _framed(ink: _Mask, corner: tuple[int, int], size: int) -> _Mask:
    """Return ink as a mask of the whole montage; what lies outside is cut off."""
    mask = np.zeros((size, size), dtype=np.bool_)
    x, y = corner
    inside = ink[max(0, -y) : size - y, max(0, -x) : size - x]
    x, y = max(0, x), max(0, y)
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return mask


def _ground(photograph: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Return a crop of a photograph, perhaps mirrored, its colours perhaps exchanged, and lit."""
    side = min(photograph.size) * rng.uniform(*_CROP)
    left, top = (rng.uniform(0, whole - side) for whole in photograph.size)
    box = (left, top, left + side, top + side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box)
    if rng.integers(2):
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    bands = crop.split()
    crop = Image.merge("RGB", [bands[index] for index in rng.permutation(3)])
    return crop.point(Light.draw(rng).table())


@dataclass(frozen=True)
class _Shadow:
    """The soft shadow that every thing of a montage casts.

    Attributes:
        strength: how much darker its middle is, 0 to 1.
        offset: how far it falls, in pixels to the right and down.
    """

    strength: float
    offset: tuple[int, int]

    @staticmethod
    def draw(rng: np.random.Generator) -> _Shadow:
        x, y = rng.integers((-8, 0), (9, 9)).tolist()
        return _Shadow(rng.uniform(0, 0.6), (x, y))

    def fall(self, canvas: Image.Image, alpha: Image.Image, corner: tuple[int, int]) -> None:
        """Darken the canvas where a thing's shadow falls."""
        width, height = (max(1, side // _SHADOW) for side in alpha.size)
        small = Image.new("L", (width + 4, height + 4))
        small.paste(alpha.resize((width, height), Image.Resampling.BOX), (2, 2))
        small = small.filter(ImageFilter.GaussianBlur(1)).point(
            [int(self.strength * level) for level in range(256)]
        )
        full = (small.width * _SHADOW, small.height * _SHADOW)
        soft = small.resize(full, Image.Resampling.BILINEAR)
        x, y = (at + by - 2 * _SHADOW for at, by in zip(corner, self.offset, strict=True))
        canvas.paste((0, 0, 0), (x, y), soft)


def _noisy(canvas: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add a sensor's noise: a random cut of one sheet, for speed."""
    size = canvas.size[0]
    row, column = rng.integers(256, size=2)
    noise = _noise_sheet(size + 256)[row : row + size, column : column + size]
    pixels = np.asarray(canvas) + np.float32(rng.uniform(*_NOISE)) * noise
    clipped: NDArray[np.float32] = np.clip(pixels, 0, 255)
    return clipped.astype(np.uint8)


@cache
def _noise_sheet(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((size, size, 3), dtype=np.float32)
