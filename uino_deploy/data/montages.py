"""A montage: a few things, each turned, lit and perhaps partly covered, on a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from uino_deploy.data.textures import draw_texture

MONTAGE_SIZE = 168
"""Side of a montage in pixels."""

_TURN = 30.0  # degrees
_BEND = 0.15  # of a box's sides by which its corners move, at most
_STRETCH = 0.12  # logarithm of the factor by which width grows and height shrinks
_INSIDE = 0.4  # of every thing, at least, lies in the montage
_UNCOVERED = 0.4  # of every thing is left by patches, at least
_PATCHES = (1, 3)  # that cover things, both included
_PATCH = (0.1, 0.4)  # side of a patch, of the montage's
_WARPS, _PLACES = 6, 6  # tries to place a thing: sizes, each smaller, and places for each
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
class Variation:
    """How far montages differ; as it stands, that of the tests.

    Attributes:
        sizes: longer side of a thing's picture, of the montage's, from and to.
        visible: least share of every thing that no other covers.
        outside: of a thing's box that may lie outside the montage, on each side.
        crop: side of the photograph's crop, of its shorter side, from and to.
        bend: the share of things whose box's corners are moved: shear and perspective.
        hue: the share of things whose hue is turned.
        grey: the share of things without colour.
        patches: the share of montages in which patches cover things.
        texture: the share of montages on a made texture.
        blur: the share of blurred montages.
    """

    sizes: tuple[float, float] = (0.25, 0.6)
    visible: float = 0.6
    outside: float = 0.1
    crop: tuple[float, float] = (0.3, 1.0)
    bend: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    patches: float = 0.0
    texture: float = 0.0
    blur: float = 0.0


PLAIN = Variation()
VARIED = Variation(
    sizes=(0.2, 0.8),
    outside=0.35,
    crop=(0.08, 1.0),
    bend=0.5,
    hue=0.5,
    grey=0.1,
    patches=0.4,
    texture=0.35,
    blur=0.3,
)
"""For training."""


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
    variation: Variation = PLAIN,
) -> Montage:
    """Paste things onto a crop of a photograph, in a random order, later ones over earlier ones.

    A share of every thing's picture stays visible, less where patches cover it. A thing that finds
    no such place is left out; the first always finds one, and so does the second in plain montages.

    Args:
        tiles: pictures of things, RGBA.
        photograph: RGB.
        rng: the only source of randomness.
        size: the montage's side S in pixels.
        alike: the first so many things are lit alike, so that their colours stay as near as they
            are in the tiles; each other thing has its own light.
        variation: how far montages differ.
    """
    pile: list[_Thing] = []
    depths = rng.permutation(len(tiles)).tolist()
    for index, (tile, depth) in enumerate(zip(tiles, depths, strict=True)):
        if (thing := _place(tile, index, depth, pile, rng, size, variation)) is not None:
            pile.append(thing)
    common = _Look.draw(rng, variation)
    looks = [common if each < alike else _Look.draw(rng, variation) for each in range(len(tiles))]
    canvas = _ground(photograph, rng, size, variation)
    shadow = _Shadow.draw(rng)
    for thing in sorted(pile, key=lambda thing: thing.depth):
        alpha = thing.picture.getchannel("A")
        shadow.fall(canvas, alpha, thing.corner)
        canvas.paste(looks[thing.index].on(thing.picture), thing.corner, alpha)
    masks = _visible(pile)
    if _happens(rng, variation.patches):
        masks = _cover(canvas, masks, photograph, rng)
    if _happens(rng, variation.blur):
        canvas = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.5)))
    canvas = canvas.point(Light.draw(rng, 0.5).table())
    return Montage(_noisy(canvas, rng), np.array(masks), tuple(thing.index for thing in pile))


def _happens(rng: np.random.Generator, share: float) -> bool:
    """Decide by chance; what never happens takes nothing from the generator."""
    return share > 0 and rng.uniform() < share


@dataclass(frozen=True)
class _Look:
    """A thing's colours: each may become a mixture of red, green and blue, and is then lit.

    Attributes:
        light: how the thing is lit.
        mixture: of [red, green, blue] for each of them, [3, 3]; None for the colours as they are.
    """

    light: Light
    mixture: NDArray[np.float64] | None

    @staticmethod
    def draw(rng: np.random.Generator, variation: Variation) -> _Look:
        light = Light.draw(rng)
        if _happens(rng, variation.grey):
            return _Look(light, np.tile((0.299, 0.587, 0.114), (3, 1)))
        if _happens(rng, variation.hue):
            return _Look(light, _turned(rng.uniform(0, 2 * np.pi)))
        return _Look(light, None)

    def on(self, picture: Image.Image) -> Image.Image:
        colours = picture.convert("RGB")
        if self.mixture is None:
            return colours.point(self.light.table())
        lit = np.empty((3, 4))
        lit[:, :3] = np.array(self.light.gains)[:, None] * self.mixture
        lit[:, 3] = self.light.offset
        return colours.convert("RGB", tuple(lit.ravel().tolist()))


def _turned(angle: float) -> NDArray[np.float64]:
    """Return the mixture that turns the hue: a rotation around the axis of greys, [3, 3]."""
    across = np.roll(np.eye(3), 1, axis=1)
    third, sine = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    turned: NDArray[np.float64] = np.cos(angle) * np.eye(3) + third + sine * (across.T - across)
    return turned


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
    variation: Variation,
) -> _Thing | None:
    """Warp a thing and find a place where it and all others stay visible."""
    smallest, largest = variation.sizes
    for _ in range(_WARPS):
        largest = rng.uniform(smallest, largest)
        picture = _warp(tile, largest * size, rng, variation.bend)
        ink = np.asarray(picture)[..., 3] > 127
        for _ in range(_PLACES):
            corner = _corner(picture, rng, size, variation.outside)
            mask = _framed(ink, corner, size)
            if np.count_nonzero(mask) < _INSIDE * np.count_nonzero(ink):
                continue
            thing = _Thing(index, depth, picture, corner, mask)
            things = [*pile, thing]
            if all(
                np.count_nonzero(shown) >= variation.visible * np.count_nonzero(each.mask)
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


def _warp(tile: Image.Image, longer: float, rng: np.random.Generator, bend: float) -> Image.Image:
    """Scale a picture so that its longer side is about `longer` pixels, turn, stretch, bend it."""
    left, top, right, bottom = tile.getbbox() or (0, 0, *tile.size)
    scale = longer / max(right - left, bottom - top)
    angle = np.deg2rad(_TURN * rng.uniform(-1, 1))
    stretch = np.exp(_STRETCH * rng.uniform(-1, 1))
    flip = -1 if rng.integers(2) else 1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn * (flip * stretch * scale, scale / stretch)
    if _happens(rng, bend):
        return _bend(tile, (left, top, right, bottom), forward, rng)
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


def _bend(
    tile: Image.Image,
    box: tuple[int, int, int, int],
    forward: NDArray[np.float64],
    rng: np.random.Generator,
) -> Image.Image:
    """Map a tile's box by a matrix after moving each of its corners."""
    left, top, right, bottom = box
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)
    moved = corners + _BEND * rng.uniform(-1, 1, size=(4, 2)) * (right - left, bottom - top)
    to = moved @ forward.T
    to -= to.min(axis=0) - 1
    width, height = (int(side) + 2 for side in to.max(axis=0))
    rows, values = [], []
    for (x, y), (u, v) in zip(to.tolist(), corners.tolist(), strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    way = tuple(np.linalg.solve(np.array(rows), np.array(values)).tolist())
    warped = tile.transform(
        (width, height), Image.Transform.PERSPECTIVE, way, Image.Resampling.BILINEAR
    )
    return warped.crop(warped.getchannel("A").getbbox())


def _corner(
    picture: Image.Image, rng: np.random.Generator, size: int, outside: float
) -> tuple[int, int]:
    """Return a random upper left corner; a part of the picture may lie outside."""
    x, y = (
        round(rng.uniform(-outside * side, max(0, size - (1 - outside) * side)))
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


def _cover(
    canvas: Image.Image, masks: list[_Mask], photograph: Image.Image, rng: np.random.Generator
) -> list[_Mask]:
    """Paste patches over things, each of one colour or a piece of a photograph; return new masks.

    A patch that would leave too little of a thing is left out.
    """
    size = canvas.size[0]
    least = [_UNCOVERED * np.count_nonzero(mask) for mask in masks]
    for _ in range(int(rng.integers(*_PATCHES, endpoint=True))):
        width, height = (size * rng.uniform(*_PATCH, size=2)).astype(int).tolist()
        ink = np.flatnonzero(masks[int(rng.integers(len(masks)))])
        row, column = divmod(int(ink[int(rng.integers(len(ink)))]), size)
        y, x = row - int(rng.integers(height)), column - int(rng.integers(width))
        covered = [mask.copy() for mask in masks]
        for mask in covered:
            mask[max(0, y) : y + height, max(0, x) : x + width] = False
        if all(np.count_nonzero(m) >= few for m, few in zip(covered, least, strict=True)):
            canvas.paste(_patch(photograph, (width, height), rng), (x, y))
            masks = covered
    return masks


def _patch(
    photograph: Image.Image, shape: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    if rng.integers(2):
        red, green, blue = rng.integers(256, size=3).tolist()
        return Image.new("RGB", shape, (red, green, blue))
    left, top = (rng.uniform(0, whole / 2) for whole in photograph.size)
    share = rng.uniform(0.1, 0.5)
    box = (left, top, left + share * photograph.width, top + share * photograph.height)
    return photograph.resize(shape, Image.Resampling.BILINEAR, box)


def _ground(
    photograph: Image.Image, rng: np.random.Generator, size: int, variation: Variation
) -> Image.Image:
    """Return a crop of a photograph, perhaps mirrored, its colours perhaps exchanged, and lit.

    Or a made texture.
    """
    if _happens(rng, variation.texture):
        return draw_texture(rng, size)
    side = min(photograph.size) * rng.uniform(*variation.crop)
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
