"""Pictures made of labelled tiles, drawn with Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uino_deploy.files import atomic_file
from uino_deploy.images import Float32, UInt8

TILE = 160
"""Side of a tile in pixels."""

_GAP = 6
_LABEL = 16
# Dark blue, blue, teal, green, yellow: even steps of lightness, distinct without colour.
_STOPS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)


def heat(plane: Float32) -> UInt8:
    """Colour a plane [h, w] from its lowest to its highest value; uint8 [h, w, 3]."""
    low, high = float(plane.min()), float(plane.max())
    place = (plane - low) / max(high - low, 1e-12) * (len(_STOPS) - 1)
    first = np.minimum(place.astype(np.intp), len(_STOPS) - 2)
    share = (place - first)[..., None]
    colours = _STOPS[first] * (1 - share) + _STOPS[first + 1] * share
    rounded: UInt8 = colours.round().astype(np.uint8)
    return rounded


def mark(image: UInt8, x: float, y: float) -> UInt8:
    """Draw a cross at a point given as fractions of the width and height; a new image."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    centre, arm = (x * width, y * height), max(width, height) / 20
    for colour, thick in (("black", 0.014), ("white", 0.007)):
        line = max(1, round(thick * max(width, height)))
        draw.line([(centre[0] - arm, centre[1]), (centre[0] + arm, centre[1])], colour, line)
        draw.line([(centre[0], centre[1] - arm), (centre[0], centre[1] + arm)], colour, line)
    return np.asarray(picture)


def montage(rows: Sequence[Sequence[tuple[str, UInt8]]]) -> UInt8:
    """Lay labelled pictures out in rows; each is fitted into a square tile.

    Args:
        rows: the label of each tile and its picture, uint8 [h, w, 3], in any size.

    Returns:
        uint8 [H, W, 3].
    """
    across = max(len(row) for row in rows)
    step, down = TILE + _GAP, TILE + _LABEL + _GAP
    canvas = Image.new("RGB", (across * step + _GAP, len(rows) * down + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    for j, row in enumerate(rows):
        for i, (label, picture) in enumerate(row):
            left, top = _GAP + i * step, _GAP + j * down
            draw.text((left, top), _drawable(label)[:26], "black", font)
            tile = _fitted(picture)
            inset = ((TILE - tile.width) // 2, (TILE - tile.height) // 2)
            canvas.paste(tile, (left + inset[0], top + _LABEL + inset[1]))
    return np.asarray(canvas)


def write_picture(picture: UInt8, path: Path, force: bool = False) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        OutputExists: the file exists and `force` is not given.
    """
    with atomic_file(path, force) as temporary:
        Image.fromarray(picture).save(temporary, "png")


def _drawable(label: str) -> str:
    """Spell out the characters that Pillow's own font may lack."""
    return "".join(c if c.isascii() else f"U+{ord(c):04X}" for c in label)


def _fitted(picture: UInt8) -> Image.Image:
    image = Image.fromarray(picture)
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    enlarged = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return image.resize(size, enlarged)
