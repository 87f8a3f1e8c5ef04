"""Masks drawn from the annotations of a COCO file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.images.coco_file import (
    CocoImage,
    check_area,
    find_image,
    is_crowd,
    mask_of_runs,
    only,
    read_coco,
    read_segmentations,
    size_of,
)
from uino_deploy.images.opening import MAX_PIXELS, UInt8, read_header
from uino_deploy.images.reading import turn_with
from uino_deploy.inputs import nfc


def polygons_from_coco(path: str | Path, image: str | int | Path, category: str) -> UInt8:
    """Draw one category's polygons and run lengths in one image of a COCO annotation file.

    A pixel is foreground if its centre lies inside any of the outlines (even-odd rule).
    Crowd annotations are skipped, and so are those without an area beside others.

    Args:
        path: the annotation file.
        image: the image's id; its file name with or without folders; or, as a `Path`, its file,
            whose size must be the one that the annotation file says. A mask of the file's stored
            pixels is turned upright with it.
        category: the category's name.

    Returns:
        uint8 [height, width].

    Raises:
        InputError: the file is not a COCO file, it does not contain the image or the category
            exactly once, no annotation matches, or one is damaged or of another size.
    """
    coco = read_coco(path)
    entry = find_image(coco, image, path)
    kind = only(
        [each for each in coco.categories if each.name == nfc(category)],
        f"category {category!r}",
        path,
        [each.name for each in coco.categories],
    )
    height, width = _size(entry, image, path)
    wanted = [
        (row, each)
        for row, each in enumerate(coco.annotations)
        if (each.image_id, each.category_id) == (entry.id, kind.id) and not is_crowd(each)
    ]
    raws = {f"annotation {each.id} [{row}]": each.segmentation for row, each in wanted}
    shapes = read_segmentations(raws, height, width, str(path))
    if not any(each.polygons or each.runs for each in shapes):
        why = next((f": {each.unusable}" for each in shapes if each.unusable), "")
        name = entry.file_name
        raise InputError(f"{path}: image {name!r} has no polygons of category {category!r}{why}")
    try:
        check_area(shapes, height, width)
    except ValueError as error:
        raise InputError(f"{path}: image {entry.file_name!r} has {error}") from error
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        if shape.runs is not None:
            mask |= mask_of_runs(shape.runs, height, width)
        for polygon in shape.polygons:
            _rasterise(polygon, mask)
    return turn_with(mask, image, f"its mask in {path}") if isinstance(image, Path) else mask


def _size(entry: CocoImage, image: str | int | Path, path: str | Path) -> tuple[int, int]:
    if isinstance(image, Path):
        header = read_header(image)
        return size_of(entry, [header.shape, (header.height, header.width)], path)
    if not entry.height or not entry.width:
        raise InputError(f"{path} has no size of image {entry.file_name!r}")
    if entry.height * entry.width > MAX_PIXELS:
        raise InputError(f"{path}: image {entry.file_name!r} has more than {MAX_PIXELS} pixels")
    return entry.height, entry.width


def _rasterise(polygon: list[float], mask: UInt8) -> None:
    """Fill a polygon by the even-odd rule at pixel centres: each edge flips all to its right."""
    height, width = mask.shape
    xs, ys = polygon[::2], polygon[1::2]
    top = min(height, max(0, math.ceil(min(ys) - 0.5)))
    bottom = min(height, max(top, math.ceil(max(ys) - 0.5)))
    left = min(width, max(0, math.floor(min(xs) - 0.5)))
    right = min(width, max(left, math.ceil(max(xs) - 0.5)))
    flips = np.zeros((bottom - top, right - left + 1), np.uint8)
    points = list(zip(xs, ys, strict=True))
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        first = max(0, math.ceil(min(y0, y1) - 0.5))
        last = min(height, math.ceil(max(y0, y1) - 0.5))
        if first >= last:
            continue
        rows = np.arange(first, last)
        crossing = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(crossing - 0.5), left, right).astype(np.intp)
        flips[rows - top, columns - left] ^= 1
    mask[top:bottom, left:right] |= np.bitwise_xor.accumulate(flips[:, :-1], axis=1)
