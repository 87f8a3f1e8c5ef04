"""Pictures of things as yet another hand might draw them: bent, shaded, outlined, flattened.

Training sees three hands, and the model must find things by a fourth. What hands differ in is what
an augmentation has to vary: proportions, gradients and gloss, outlines, the number of colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_CELLS = 3  # of the mesh along each side
_BEND = 0.09  # of a side, by which a mesh's inner points move at most; the outer ones half as far
_MARGIN = 0.1  # of a side, left around a picture before it is bent
_MESH, _SHADE, _OUTLINE, _FLAT = 0.7, 0.6, 0.15, 0.15  # shares of pictures


def restyle(tile: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a picture in a random style.

    Args:
        tile: RGBA, square.
        rng: the only source of randomness.
    """
    chances = rng.uniform(size=4)
    if chances[0] < _FLAT:
        tile = _flat(tile, int(rng.integers(3, 9)))
    if chances[1] < _MESH:
        tile = _bent(tile, rng)
    if chances[2] < _SHADE:
        tile = _shaded(tile, rng)
    if chances[3] < _OUTLINE:
        tile = _outlined(tile, rng)
    return tile


def _flat(tile: Image.Image, colours: int) -> Image.Image:
    few = tile.convert("RGB").quantize(colours, kmeans=0).convert("RGB")
    few.putalpha(tile.getchannel("A"))
    return few


def _bent(tile: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Move the points of a coarse mesh over a picture, each cell's content with them."""
    side = tile.size[0]
    margin = round(_MARGIN * side)
    whole = side + 2 * margin
    wide = Image.new("RGBA", (whole, whole))
    wide.paste(tile, (margin, margin))
    ticks = np.linspace(0, whole, _CELLS + 1)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1)  # [row, column, (x, y)]
    moves = rng.uniform(-1, 1, size=points.shape) * _BEND * side
    moves[[0, -1]] /= 2
    moves[:, [0, -1]] /= 2
    sources = points + moves
    mesh = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            left, top = points[row, column].round().astype(int).tolist()
            right, bottom = points[row + 1, column + 1].round().astype(int).tolist()
            around = (row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1)
            corners = [value for corner in around for value in sources[corner].tolist()]
            mesh.append(((left, top, right, bottom), tuple(corners)))
    return wide.transform(wide.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _shaded(tile: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light a picture as if it were round, as high as its blurred alpha and brightness."""
    pixels = np.asarray(tile).astype(np.float32)
    alpha = pixels[..., 3] / 255
    radius = rng.uniform(0.03, 0.12) * tile.size[0]
    height = _blurred(tile.getchannel("A"), radius) * alpha
    height += rng.uniform(0, 0.5) * _blurred(tile.convert("L"), radius / 3)
    down, right = np.gradient(height)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * right + np.sin(angle) * down) * radius
    shade = np.clip(1 + rng.uniform(0.3, 1.2) * slope, 0.3, 1.7)[..., None]
    ramp = np.linspace(-1, 1, tile.size[0], dtype=np.float32)[:, None, None]
    shade = shade * (1 + rng.uniform(-0.3, 0.3) * ramp)
    gloss = 255 * rng.uniform(0, 0.8) * np.clip(slope - rng.uniform(0.2, 0.5), 0, 1)[..., None]
    lit = np.clip(pixels[..., :3] * shade + gloss, 0, 255)
    return Image.fromarray(np.concatenate([lit, pixels[..., 3:]], axis=-1).astype(np.uint8))


def _blurred(plane: Image.Image, radius: float) -> NDArray[np.float32]:
    blurred = np.array(plane.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    blurred /= 255
    return blurred


def _outlined(tile: Image.Image, rng: np.random.Generator) -> Image.Image:
    alpha = tile.getchannel("A")
    grown = alpha.filter(ImageFilter.MaxFilter(int(rng.choice([3, 5]))))
    dark = rng.integers(0, 90, size=3).tolist()
    line = Image.new("RGBA", tile.size, (*dark, 0))
    line.putalpha(grown)
    line.alpha_composite(tile)
    return line
