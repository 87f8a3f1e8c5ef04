"""Preprocessing: images and masks to a model's inputs, logits to an image's size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from uino_deploy.images.opening import UInt8

Float32 = npt.NDArray[np.float32]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def preprocess_image(image: UInt8, size: int) -> Float32:
    """Squash an image to a square with Pillow's bicubic filter and normalise it as ImageNet's.

    Args:
        image: uint8 [H, W, 3].
        size: side of the square in pixels.

    Returns:
        float32 [3, size, size].
    """
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    scaled = np.asarray(square, np.float32) / np.float32(255)
    normal = (scaled - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def preprocess_mask(mask: UInt8, size: int, patch: int) -> Float32:
    """Squash a mask to a square with Pillow's box filter and average it over each patch.

    Args:
        mask: [H, W]; non-zero is foreground. What is smaller than a pixel of the square can vanish.
        size: side of the square in pixels, a multiple of `patch`.
        patch: side of a patch in pixels.

    Returns:
        float32 [N], the share of foreground in each patch, row by row, in [0, 1].
    """
    grey = Image.fromarray((mask != 0).astype(np.float32))
    square = np.asarray(grey.resize((size, size), Image.Resampling.BOX))
    grid = size // patch
    shares = square.reshape(grid, patch, grid, patch).mean(axis=(1, 3), dtype=np.float64)
    # Pillow's filter weights sum to 1 within rounding only.
    clipped: Float32 = np.clip(shares, 0, 1).astype(np.float32).reshape(-1)
    return clipped


def upsample_logits(logits: Float32, height: int, width: int) -> Float32:
    """Resize bilinearly between pixel centres, as `F.interpolate(align_corners=False)` does.

    Args:
        logits: float32 [h, w].
        height: rows of the result.
        width: columns of the result.

    Returns:
        float32 [height, width].
    """
    top, bottom, down = _neighbours(logits.shape[0], height)
    left, right, across = _neighbours(logits.shape[1], width)
    columns = logits[:, left] + (logits[:, right] - logits[:, left]) * across
    rows: Float32 = columns[bottom]
    rows -= columns[top]
    rows *= down[:, None]
    rows += columns[top]
    return rows


def sigmoid(logits: Float32) -> Float32:
    """Return probabilities, 0 to 1; no logit overflows."""
    probability: Float32 = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits))
    return probability


def _neighbours(
    source: int, target: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32]:
    """Return for each target cell its two source cells and the second one's share."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    centre = np.clip(centre, 0, source - 1)
    first = np.floor(centre).astype(np.intp)
    second = np.minimum(first + 1, source - 1)
    return first, second, (centre - first).astype(np.float32)
