"""Pictures of results: images dimmed, with the truth and the prediction painted over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from uino_deploy.page import Grade, Legend

UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

TRUTH_COLOUR = (64, 196, 255)
HIT_COLOUR = (46, 204, 113)
FALSE_COLOUR = (255, 82, 82)
MISSED_COLOUR = (255, 193, 7)

# Rising or falling stripes tell the regions apart without colour.
Pattern = str
SOLID, RISING, FALLING = "", "rising", "falling"

LEGEND = Legend(
    [
        ("ground truth", TRUTH_COLOUR, SOLID),
        ("correct", HIT_COLOUR, SOLID),
        ("false positive", FALSE_COLOUR, RISING),
        ("missed", MISSED_COLOUR, FALLING),
    ]
)


def paint(image: UInt8, regions: Sequence[tuple[npt.NDArray[np.bool_], Colour, Pattern]]) -> UInt8:
    """Dim an image and paint regions of it, legible on any colours.

    Args:
        image: uint8 [H, W, 3].
        regions: (bool [H, W], colour, pattern); a later one is painted over an earlier one.

    Returns:
        uint8 [H, W, 3], a new image.
    """
    grey = image.mean(axis=2, keepdims=True)
    dimmed = 0.35 * (0.6 * image + 0.4 * grey)
    drawn = dimmed.copy()
    rows, columns = np.indices(image.shape[:2])
    stripes = {
        SOLID: columns < 0,
        RISING: (rows + columns) % 4 == 3,
        FALLING: (rows - columns) % 4 == 3,
    }
    for region, colour, pattern in regions:
        drawn[region] = 0.3 * image[region] + 0.7 * np.array(colour, np.float64)
        gaps = region & stripes[pattern]
        drawn[gaps] = dimmed[gaps]
    painted: UInt8 = drawn.round().astype(np.uint8)
    return painted


def iou_fact(iou: float) -> tuple[str, Grade]:
    """Return an IoU of 0 to 1 as a fact of an `Example`: in per cent, and how good it is."""
    return f"IoU {100 * iou:.0f}", "good" if iou >= 0.75 else "fair" if iou >= 0.5 else "poor"


def paint_prediction(image: UInt8, truth: UInt8, predicted: UInt8) -> UInt8:
    """Paint the correct pixels, the false positives and the false negatives.

    Args:
        image: uint8 [H, W, 3].
        truth: [H, W], non-zero is foreground.
        predicted: [H, W], likewise.

    Returns:
        uint8 [H, W, 3], a new image.
    """
    real, marked = truth != 0, predicted != 0
    return paint(
        image,
        [
            (real & marked, HIT_COLOUR, SOLID),
            (marked & ~real, FALSE_COLOUR, RISING),
            (real & ~marked, MISSED_COLOUR, FALLING),
        ],
    )
