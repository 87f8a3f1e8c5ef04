"""COCO annotation files: read tolerantly, and checked before anything is drawn.

Tools write these files in many ways. What a mask needs is read in any of them (ids as text, sizes
as floats, NaN, byte order marks, backslashes); what it does not need is not looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec
import numpy as np

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.images.opening import UInt8
from uino_deploy.inputs import few, json_text, nfc, notice, printable, read_regular

MAX_BYTES = 2 << 30
"""Bytes of the largest annotation file that is read."""

MAX_OUTLINE = 4_000_000
"""Length in pixels of all outlines of one segmentation, at most."""

MAX_AREA = 10**10
"""Pixels of the boxes around all segmentations of a category in one image, at most."""

# Corners may lie outside the image, but not this many of its longer side.
_REACH = 10

Id = int | str
_T = TypeVar("_T")


class CocoImage(msgspec.Struct):
    """An image of the file; a side is None where the file does not say it, 0 where it cannot be."""

    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class CocoCategory(msgspec.Struct):
    """A category of the file."""

    id: Any = None
    name: Any = None


class CocoAnnotation(msgspec.Struct):
    """An annotation of the file; its segmentation stays undecoded: there may be a million."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: Any = None


class CocoFile(msgspec.Struct):
    """An annotation file with ids that are equal where they mean the same."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]


class Segmentation(msgspec.Struct):
    """An annotation's mask, checked: polygons, or run lengths column by column.

    Attributes:
        polygons: x, y, x, y, ... each, three corners or more.
        runs: pixels of background, object, background, ...; None for polygons.
        unusable: why it marks no area, such as a polygon of two corners; empty if it does.
    """

    polygons: list[list[float]]
    runs: list[int] | None = None
    unusable: str = ""


def read_coco(path: str | Path) -> CocoFile:
    """Read an annotation file.

    Raises:
        InputError: it cannot be read, is larger than `MAX_BYTES`, or no COCO file.
    """
    try:
        data = read_regular(path, "annotations", MAX_BYTES)
    except OSError as error:
        raise InputError(f"annotations {path} cannot be read: {error.strerror}") from error
    try:
        coco = _decoded(json_text(data), path)
        for image in coco.images:
            image.id, image.file_name = same_id(image.id), _text(image.file_name).replace("\\", "/")
            image.height, image.width = _side(image.height), _side(image.width)
        for category in coco.categories:
            category.id, category.name = same_id(category.id), _text(category.name)
        for each in coco.annotations:
            each.image_id, each.category_id = same_id(each.image_id), same_id(each.category_id)
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise InputError(f"{path} is not a COCO annotation file: {error}") from error
    _drop_copies(coco, path)
    return coco


def _drop_copies(coco: CocoFile, path: str | Path) -> None:
    """Keep one of entries that are equal, as merged files hold them; refuse an id of two images.

    Raises:
        InputError: two images share an id: whose the annotations are cannot be told.
    """
    images: dict[Id, CocoImage] = {}
    for each in coco.images:
        if images.setdefault(each.id, each) != each and each.id != "None":
            first = images[each.id].file_name
            raise InputError(f"{path} gives the id {each.id} to {first} and to {each.file_name}")
    coco.images = [each for each in coco.images if images[each.id] is each or each.id == "None"]
    kinds = {(each.id, each.name): each for each in coco.categories}
    coco.categories = list(kinds.values())


def find_image(coco: CocoFile, image: str | int | Path, path: str | Path) -> CocoImage:
    """Return an image by its id, or by its name and as many folders as it takes.

    Raises:
        InputError: the file contains no such image, or several.
    """
    found = [each for each in coco.images if each.id == image]
    if not found:
        wanted = _parts(image)
        shared = [_shared(wanted, _parts(each.file_name)) for each in coco.images]
        most = max(shared, default=0)
        found = [each for each, n in zip(coco.images, shared, strict=True) if 0 < n == most]
    name = image if isinstance(image, int) else printable(Path(image).name)
    return only(found, f"image {name!r}", path, [each.file_name for each in coco.images])


def only(found: list[_T], what: str, path: str | Path, known: list[str]) -> _T:
    """Return the one thing that was found; `known` are the names of all.

    Raises:
        InputError: it is not one.
    """
    if len(found) != 1:
        hint = f"it has {few(known, 5)}" if known and not found else ""
        raise InputError(f"{path} has {what} {len(found)} times, not once", hint)
    return found[0]


def same_id(value: Any) -> Id:
    """Return an id so that 7, 7.0 and "7" are equal."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) else str(value)


def is_crowd(annotation: CocoAnnotation) -> bool:
    """Return whether an annotation marks a crowd; null is no."""
    return annotation.iscrowd in (1, "1", "true", "True")


def size_of(image: CocoImage, shapes: list[tuple[int, int]], path: str | Path) -> tuple[int, int]:
    """Return an image's height and width, compared with those of its file.

    Args:
        image: the image.
        shapes: the file's height and width, upright and as stored.
        path: the annotation file, for the message.

    Raises:
        InputError: they differ, before anything of that size is allocated.
    """
    size = (image.height, image.width)
    if None in size:
        return shapes[0]
    if size not in shapes:
        (height, width), name = shapes[0], image.file_name
        raise InputError(
            f"{path} says that {name} has {size[1]} x {size[0]} pixels; it has {width} x {height}"
        )
    return size


def read_segmentation(raw: msgspec.Raw, height: int, width: int) -> Segmentation:
    """Decode and check a segmentation.

    Raises:
        ValueError: it is damaged, or longer than `MAX_OUTLINE`.
    """
    value: Any = decode_json(raw, object)
    if isinstance(value, dict):
        return Segmentation([], _runs(value, height, width))
    if value is None:
        return Segmentation([], unusable="it has none")
    if not isinstance(value, list):
        raise ValueError(f"it is {type(value).__name__}")
    if value and not any(isinstance(each, list) for each in value):
        value = [value]
    short = ""
    polygons = []
    for polygon in value:
        _check_polygon(polygon, _REACH * max(height, width))
        if len(polygon) < 6:
            short = f"a polygon of {len(polygon)} numbers"
        else:
            polygons.append([float(number) for number in polygon])
    if sum(map(_length, polygons)) > MAX_OUTLINE:
        raise ValueError(f"its outlines are longer than {MAX_OUTLINE} pixels")
    return Segmentation(polygons, unusable="" if polygons else short)


def read_segmentations(
    raws: Mapping[str, msgspec.Raw], height: int, width: int, where: str
) -> list[Segmentation]:
    """Read what marks one category in one image; damaged ones are left out and named in a notice.

    Args:
        raws: by the name of their annotation.
        height: the image's.
        width: the image's.
        where: the file, for messages.

    Raises:
        InputError: all that mark anything are damaged.
    """
    read, damaged = [], []
    for name, raw in raws.items():
        try:
            read.append(read_segmentation(raw, height, width))
        except ValueError as error:
            damaged.append(f"{name} has {error}")
    if damaged and not any(each.polygons or each.runs for each in read):
        raise InputError(f"{where}: {damaged[0]}", "a polygon is x, y, x, y, x, y, ... in pixels")
    if damaged:
        told = f"{where}: skipped {len(damaged)} of {len(raws)} annotations of a mask: "
        notice("skipped annotations", told + few(damaged))
    return read


def check_area(shapes: list[Segmentation], height: int, width: int) -> None:
    """Refuse segmentations of an image that would take minutes to draw.

    Raises:
        ValueError: the boxes around them have more than `MAX_AREA` pixels.
    """
    area = 0.0
    for shape in shapes:
        area += height * width if shape.runs is not None else 0
        for polygon in shape.polygons:
            area += _extent(polygon[::2], width) * _extent(polygon[1::2], height)
    if area > MAX_AREA:
        raise ValueError(f"segmentations over {area:.1e} pixels, the limit is {MAX_AREA:.0e}")


def mask_of_runs(runs: list[int], height: int, width: int) -> UInt8:
    """Return the mask [height, width] of run lengths column by column, background first."""
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    columns = np.repeat(values, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def runs_of_mask(mask: UInt8) -> list[int]:
    """Return the run lengths of a mask [H, W] column by column, background first."""
    flat = np.concatenate([[0], mask.T.ravel() != 0])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return runs


class _Loose(msgspec.Struct):
    """An annotation file whose entries are not decoded yet: one may be damaged."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


def _decoded(data: bytes, path: str | Path) -> CocoFile:
    """Decode a file; entries that are no objects are left out and named in a notice."""
    with suppress(DocumentError):
        return decode_json(data, CocoFile)
    try:
        loose = decode_json(data, _Loose)
    except DocumentError as error:
        if isinstance(error.__cause__, msgspec.ValidationError):
            raise
        # Python writes NaN, which JSON does not know; written again, it becomes null.
        loose = decode_json(msgspec.json.encode(json.loads(data)), _Loose)
    return CocoFile(
        _objects(loose.images, CocoImage, "images", path),
        _objects(loose.categories, CocoCategory, "categories", path),
        _objects(loose.annotations, CocoAnnotation, "annotations", path),
    )


def _objects(raws: list[msgspec.Raw], kind: type[_T], what: str, path: str | Path) -> list[_T]:
    objects, skipped = [], []
    for number, raw in enumerate(raws):
        try:
            objects.append(decode_json(raw, kind))
        except DocumentError:
            skipped.append(f"[{number}] is {bytes(raw)[:20].decode(errors='replace')}")
    if skipped and not objects:
        raise ValueError(f"none of its {what} is an object")
    if skipped:
        told = f"{path}: skipped {len(skipped)} of {len(raws)} {what} that are no objects: "
        notice("skipped annotations", told + few(skipped))
    return objects


def _side(value: Any) -> int | None:
    if value is None:
        return None
    try:
        side = float(value)
    except (ValueError, TypeError, OverflowError):
        return 0
    return int(side) if side.is_integer() and 1 <= side <= 2**31 else 0


def _text(value: Any) -> str:
    return "" if value is None else nfc(str(value))


def _parts(image: str | int | Path) -> tuple[str, ...]:
    text = image.as_posix() if isinstance(image, Path) else str(image)
    return PurePosixPath(nfc(text.replace("\\", "/"))).parts


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many parts two paths share at their ends."""
    count = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _check_polygon(polygon: Any, reach: int) -> None:
    if not isinstance(polygon, list) or len(polygon) % 2:
        size = len(polygon) if isinstance(polygon, list) else "no"
        raise ValueError(f"a polygon of {size} numbers")
    for number in polygon:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"a polygon with {number!r} in it")
        if not math.isfinite(number) or abs(number) > reach:
            raise ValueError(f"a corner at {number:g}, further out than {_REACH} sides")


def _extent(ends: list[float], side: int) -> float:
    return max(0.0, min(max(ends), side) - max(min(ends), 0))


def _length(polygon: list[float]) -> float:
    corners = np.asarray(polygon).reshape(-1, 2)
    steps = np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1) + 1
    return float(steps.sum())


def _runs(value: dict[str, Any], height: int, width: int) -> list[int]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise ValueError(f"run-lengths for size {size}")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(each) is int for each in counts):
        raise ValueError("run-lengths that are no integers")
    if any(each < 0 for each in counts):
        raise ValueError("run-lengths below zero")
    if sum(counts) != height * width:
        raise ValueError(f"run-lengths of {sum(counts)} pixels, the image has {height * width}")
    return counts


def _unpacked(text: str) -> list[int]:
    """Unpack COCO's compressed run lengths: five bits a character, differences from the third."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("run-lengths with a wrong character")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run-lengths that are cut short")
    return counts
