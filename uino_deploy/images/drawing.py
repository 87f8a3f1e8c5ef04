"""Masks drawn over images."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

from uino_deploy.images.opening import UInt8

Colour = tuple[int, int, int]


def class_colour(index: int) -> Colour:
    """Return the RGB colour of the class at `index`; neighbours lie far apart on the hue circle."""
    golden = 0.6180339887
    hue = (0.58 + index * golden) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 if index % 2 == 0 else 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: UInt8, mask: UInt8, colour: Colour) -> UInt8:
    """Draw a mask over an image: a translucent fill and an opaque contour inside its edge.

    Args:
        image: uint8 [H, W, 3].
        mask: [H, W]; non-zero is foreground.
        colour: RGB, each 0 to 255.

    Returns:
        uint8 [H, W, 3], a new image.
    """
    inside = mask != 0
    contour = inside & ~_eroded(inside, max(1, round(max(mask.shape) / 300)))
    drawn: UInt8 = image.copy()
    tint = np.array(colour, np.float32)
    drawn[inside] = (0.6 * image[inside] + 0.4 * tint).round().astype(np.uint8)
    drawn[contour] = colour
    return drawn


def _eroded(inside: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Return the mask without its outermost `steps` pixels; the image border does not erode it."""
    kept = inside
    for _ in range(steps):
        padded = np.pad(kept, 1, mode="edge")
        kept = kept & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return kept
