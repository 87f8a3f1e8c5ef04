"""A drawn example: a light letter on a dark background, which needs no image file.

A comparison needs a mask of many pixels: in a small mask, one pixel more or less means little.
The bundled checkpoint finds letters; for any other model they are as good as any image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uino_deploy.images import UInt8

_SIDE = 160


def draw_letter(seed: int, letter: str = "A") -> tuple[UInt8, UInt8]:
    """Draw a light letter on a dark background of smooth colours.

    Returns:
        image uint8 [160, 160, 3] and the letter's mask uint8 [160, 160], 0 or 1; the same for the
        same seed and letter.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    ground = 0.2 + 0.1 * np.sin(random.uniform(1, 6, 3) * 2 * np.pi * (x + y)[..., None])
    plane = Image.new("L", (_SIDE, _SIDE))
    font = ImageFont.load_default(int(random.integers(90, 120)))
    middle = tuple(random.uniform(0.42, 0.58, 2) * _SIDE)
    ImageDraw.Draw(plane).text(middle, letter, fill=255, font=font, anchor="mm")
    shares = np.asarray(plane)[..., None] / 255
    colours = ground + shares * (random.uniform(0.75, 1, 3) - ground)
    mask = (shares[..., 0] > 0.5).astype(np.uint8)
    return (colours.clip(0, 1) * 255).astype(np.uint8), mask
