"""Masks rasterised from the polygons of a COCO annotation file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.images.reading import UInt8

_T = TypeVar("_T")
_Side = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _CocoImage(msgspec.Struct):
    id: int
    file_name: str
    height: _Side
    width: _Side


class _CocoCategory(msgspec.Struct):
    id: int
    name: str


class _CocoAnnotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    # Decoded only for the annotations to draw: a training set's file has a million.
    segmentation: msgspec.Raw
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    images: list[_CocoImage]
    categories: list[_CocoCategory]
    annotations: list[_CocoAnnotation]


def polygons_from_coco(path: str | Path, image: str | int, category: str) -> UInt8:
    """Rasterise one category's polygons in one image of a COCO annotation file.

    A pixel is foreground if its centre lies inside any of the outlines (even-odd rule).
    Crowd annotations are skipped.

    Args:
        path: the annotation file.
        image: the image's id, or its file name with or without folders.
        category: the category's name.

    Returns:
        uint8 [height, width] as the file gives them.

    Raises:
        InputError: the file is not a COCO file, it does not contain the image or the category
            exactly once, no annotation matches, or one is run-length encoded.
    """
    coco = _read_coco(path)
    entry = _only(
        [i for i in coco.images if image in (i.id, i.file_name, Path(i.file_name).name)],
        f"image {image!r}",
        path,
    )
    kind = _only([c for c in coco.categories if c.name == category], f"category {category!r}", path)
    mask = np.zeros((entry.height, entry.width), np.uint8)
    seen = False
    for annotation in coco.annotations:
        if (annotation.image_id, annotation.category_id) != (entry.id, kind.id):
            continue
        if annotation.iscrowd:
            continue
        for polygon in _polygons(path, annotation):
            mask |= _rasterise(polygon, entry.height, entry.width)
            seen = True
    if not seen:
        raise InputError(f"{path}: image {image!r} has no polygons of category {category!r}")
    return mask


def _read_coco(path: str | Path) -> _Coco:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=_Coco)
    except OSError as error:
        raise InputError(f"annotations {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a COCO annotation file: {error}") from error


def _only(found: Sequence[_T], what: str, path: str | Path) -> _T:
    if len(found) != 1:
        raise InputError(f"{path} has {what} {len(found)} times, not once")
    return found[0]


def _polygons(path: str | Path, annotation: _CocoAnnotation) -> list[list[float]]:
    try:
        polygons = msgspec.json.decode(annotation.segmentation, type=list[list[float]])
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: annotation {annotation.id} has no polygons (run-length encoded?)",
            "give polygons, or the mask as an image",
        ) from error
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise InputError(
                f"{path}: annotation {annotation.id} has a polygon of {len(polygon)} numbers",
                "a polygon is x, y, x, y, x, y, ...",
            )
    return polygons


def _rasterise(polygon: list[float], height: int, width: int) -> UInt8:
    """Fill a polygon by the even-odd rule at pixel centres: each edge flips all to its right."""
    flips = np.zeros((height, width + 1), np.uint8)
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        first = max(0, math.ceil(min(y0, y1) - 0.5))
        last = min(height, math.ceil(max(y0, y1) - 0.5))
        if first >= last:
            continue
        rows = np.arange(first, last)
        crossing = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.intp)
        flips[rows, columns] ^= 1
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width]
