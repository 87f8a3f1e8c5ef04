"""Glyph classes: 320 characters that do not look alike, drawn with the fonts matplotlib ships.

The characters are listed in `glyphs.txt` rather than chosen when the package runs: a library that
renders one pixel differently must not move a held-out class into the training set. Any two differ
by an intersection over union below 0.72 in DejaVu Sans Bold, and none is a digit.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uino_deploy.dependencies import require
from uino_deploy.errors import InputError

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
STROKES = (2, 4)
"""Widths of the stroke around an outline, in pixels at the font size drawn with."""

SPRITE_SIZE = 80
"""Side of a sprite in pixels."""

INK_SIZE = 60
"""Mean of the ink's width and height in a sprite, in pixels; less if one of them is long."""

HELD_OUT = 80
"""Classes that training never sees."""

_SPLIT_SEED = 0
_FONT_SIZE = 96


@cache
def base_and_held_out() -> tuple[str, str]:
    """Return the 240 characters for training and the 80 held out, split by a fixed seed."""
    listing = files("uino_deploy.data").joinpath("glyphs.txt").read_text(encoding="utf-8")
    characters = "".join(listing.split())
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(characters))
    held_out = set(order[:HELD_OUT].tolist())
    return (
        "".join(c for i, c in enumerate(characters) if i not in held_out),
        "".join(c for i, c in enumerate(characters) if i in held_out),
    )


def font_path(font: str) -> Path:
    """Return the path of one of matplotlib's fonts.

    Raises:
        DependencyError: matplotlib is not installed.
        InputError: this matplotlib does not ship the font.
    """
    require("train", "matplotlib")
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not path.is_file():
        raise InputError(
            f"matplotlib {matplotlib.__version__} ships no font {path.name}",
            "install a matplotlib that has the DejaVu and STIX fonts, such as 3.8 to 3.11",
        )
    return path


@cache
def fonts_with(character: str) -> tuple[str, ...]:
    """Return the fonts that can draw a character: all of `FONTS`, or those of DejaVu."""
    return tuple(font for font in FONTS if ord(character) in _code_points(font))


@cache
def _code_points(font: str) -> frozenset[int]:
    path = font_path(font)
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(path)).get_charmap())


@cache
def _load_font(font: str) -> ImageFont.FreeTypeFont:
    # The basic layout engine is in every Pillow; the other one may move a glyph by a pixel.
    return ImageFont.truetype(font_path(font), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph_sprite(character: str, font: str, stroke: int) -> NDArray[np.uint8]:
    """Draw a character.

    Args:
        character: one character that `font` has.
        font: one of `FONTS`.
        stroke: pixels added on each side of an outline at a font size of 96.

    Returns:
        Coverage [SPRITE_SIZE, SPRITE_SIZE], as `fit_sprite` makes it.
    """
    face = _load_font(font)
    canvas = Image.new("L", (3 * _FONT_SIZE, 3 * _FONT_SIZE))
    ImageDraw.Draw(canvas).text(
        (_FONT_SIZE, _FONT_SIZE), character, font=face, fill=255, stroke_width=stroke
    )
    return fit_sprite(canvas)


def fit_sprite(drawing: Image.Image) -> NDArray[np.uint8]:
    """Cut out a drawing's ink and scale it to `INK_SIZE`.

    Args:
        drawing: coverage, mode "L", 0 where there is no ink.

    Returns:
        Coverage [SPRITE_SIZE, SPRITE_SIZE], uint8, 255 inside the ink, the ink centred.
    """
    ink = drawing.crop(drawing.getbbox())
    scale = min(2 * INK_SIZE / sum(ink.size), SPRITE_SIZE / max(ink.size))
    width, height = (max(1, round(length * scale)) for length in ink.size)
    ink = ink.resize((width, height), Image.Resampling.BICUBIC)
    sprite = Image.new("L", (SPRITE_SIZE, SPRITE_SIZE))
    sprite.paste(ink, ((SPRITE_SIZE - width) // 2, (SPRITE_SIZE - height) // 2))
    return np.asarray(sprite)
