"""The objects in a mask: touching ones are parted at their necks, by scikit-image's watershed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.dependencies import require
from uino_deploy.images.opening import UInt8
from uino_deploy.images.preprocessing import Float32, sigmoid, upsample_logits

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""[H, W]: 0, or 1 + the object's index; uint16 where there are more than 255 objects."""

# `uino-deploy evaluate --instances` measures what these numbers give.
NECK = 0.8
"""Two parts of a mask are two objects if the neck between them is narrower than this share of the
narrower part's width."""

SMOOTHING = 0.03
"""Standard deviation that smooths widths before necks are sought, as a share of the plane's side:
outlines are ragged."""

SPECK = 0.08
"""An object smaller than this share of the largest one is left out."""

_FINER = 4  # pixels for each logit, along a side, of the plane that is parted
_AROUND = np.ones((3, 3), np.uint8)  # diagonal pixels touch
_MOST = 65535  # objects that a label image of 16 bits holds
_LEAST = 0.5  # pixels: half the width of the narrowest neck that is told from the background


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        box: left, top, right, bottom in pixels, the last two exclusive.
        area: pixels.
        score: the mean probability of its pixels, times the predicted IoU of the whole mask.
    """

    box: tuple[int, int, int, int]
    area: int
    score: float


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects of a class in an image, the largest first.

    Attributes:
        labels: [H, W], see `Labels`; pixels of the mask that belong to no object are 0.
        objects: the objects; the pixels of number i are those where `labels` is i + 1.
    """

    labels: Labels
    objects: tuple[Instance, ...]

    def mask(self, index: int) -> UInt8:
        """Return an object's mask, uint8 [H, W] of 0 and 1."""
        mask: UInt8 = np.equal(self.labels, index + 1).astype(np.uint8)
        return mask


def find_instances(mask: UInt8, logits: Float32, predicted_iou: float) -> Instances:
    """Part a predicted mask into its objects.

    The mask is parted on a plane of four pixels a logit, which shows all that the logits do, so
    that a large image takes no longer; distances are those in the image.

    Args:
        mask: uint8 [H, W] of 0 and 1.
        logits: float32 [h, w], those of the mask.
        predicted_iou: the mask's; taken as 0 to 1.

    Raises:
        DependencyError: scikit-image is not installed.
    """
    require("instances", "skimage")
    height, width = mask.shape
    rows, columns = (_FINER * side for side in logits.shape)
    near = _nearest(mask, rows, columns)
    parts = part_objects(near, (height / rows, width / columns))
    # Every pixel is given to the nearest object; the mask then cuts them out at full size.
    filled = np.where(mask, _nearest(_fill(parts), height, width), 0)
    probability = sigmoid(upsample_logits(logits, height, width))
    return describe_parts(filled, probability * np.float32(np.clip(predicted_iou, 0, 1)))


def part_objects(mask: UInt8, spacing: tuple[float, float] = (1.0, 1.0)) -> npt.NDArray[np.int32]:
    """Part a mask at its necks.

    The distance to the background is half a part's width. Its logarithm turns "narrower than a
    share" into a fixed depth, so the rule is the same for small and for large objects; parts that
    rise from their neck by that depth are the seeds of a watershed.

    Args:
        mask: [H, W], non-zero in the foreground.
        spacing: height and width of a pixel.

    Returns:
        int32 [H, W]: 0, or a part's number, from 1 on.

    Raises:
        DependencyError: scikit-image is not installed.
    """
    require("instances", "skimage")
    from scipy import ndimage  # type: ignore[import-untyped] # it ships no types
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    foreground = np.pad(mask != 0, 1)  # an object that the frame cuts ends there
    unit = min(spacing)
    distance = ndimage.distance_transform_edt(foreground, [side / unit for side in spacing])
    blur = [SMOOTHING * side for side in mask.shape]
    smooth = np.where(foreground, ndimage.gaussian_filter(distance, blur), 0)
    depth = np.log(np.maximum(smooth, _LEAST) / _LEAST)
    # Not `h_maxima`: it takes every one of several equally high peaks for a maximum of its own.
    without_shallow = reconstruction(depth + np.log(NECK), depth, footprint=_AROUND)
    seeds, _ = ndimage.label(local_maxima(without_shallow) & foreground, _AROUND)
    # What is connected but thin throughout has no seed: it is one object.
    connected, count = ndimage.label(foreground, _AROUND)
    seedless = np.setdiff1d(np.arange(1, count + 1), connected[seeds > 0])
    seeds = np.where(np.isin(connected, seedless), connected + seeds.max(), seeds)
    parts: npt.NDArray[np.int32] = watershed(-smooth, seeds, _AROUND, mask=foreground)
    return parts[1:-1, 1:-1]


def connected_parts(mask: UInt8) -> npt.NDArray[np.int32]:
    """Number what is connected in a mask, diagonally too; arguments and result of `part_objects`.

    Raises:
        DependencyError: scikit-image is not installed.
    """
    require("instances", "skimage")
    from scipy import ndimage

    parts: npt.NDArray[np.int32] = ndimage.label(mask, _AROUND)[0]
    return parts


def describe_parts(parts: npt.NDArray[np.int32], score: Float32) -> Instances:
    """Return the parts as objects, the largest first, without specks.

    Args:
        parts: int32 [H, W]: 0, or a part's number, from 1 on.
        score: float32 [H, W]; an object's score is its mean.
    """
    from scipy import ndimage

    parts = _by_size(parts)
    count = int(parts.max())
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    sums = np.bincount(parts.ravel(), score.ravel(), minlength=count + 1)
    objects = tuple(
        Instance(
            (columns.start, rows.start, columns.stop, rows.stop),
            int(areas[number]),
            float(sums[number] / areas[number]),
        )
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1)
    )
    return Instances(parts.astype(np.uint8 if count <= 255 else np.uint16), objects)


def _by_size(parts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Renumber parts from 1 on, the largest first; leave out specks."""
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    kept = np.flatnonzero(areas > max(0.0, SPECK * areas.max()))
    kept = kept[np.argsort(-areas[kept], kind="stable")][:_MOST]
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[parts]


def _fill(parts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Give every pixel the number of the nearest part; all 0 if there is none."""
    from scipy import ndimage

    if not parts.any():
        return parts
    nearest = ndimage.distance_transform_edt(
        parts == 0, return_distances=False, return_indices=True
    )
    filled: npt.NDArray[np.int32] = parts[tuple(nearest)]
    return filled


def _nearest(plane: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    """Return the plane in another size: each pixel takes the value at its centre."""
    down, across = (
        ((np.arange(target) + 0.5) * (source / target)).astype(np.intp)
        for source, target in zip(plane.shape, (rows, columns), strict=True)
    )
    resized: npt.NDArray[Any] = plane[down[:, None], across]
    return resized
