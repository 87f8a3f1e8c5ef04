"""Images and masks: reading, preprocessing, rasterising, drawing.

The one implementation for training, evaluation and the runtime. Arrays are uint8 RGB [H, W, 3] and
uint8 masks [H, W] of 0 and 1.
"""

from __future__ import annotations

import colorsys
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from uino_deploy.errors import InputError

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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
    # Decoded only for the annotations that are drawn: a training set's file has a million.
    segmentation: msgspec.Raw
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    images: list[_CocoImage]
    categories: list[_CocoCategory]
    annotations: list[_CocoAnnotation]


def load_image(path: str | Path) -> UInt8:
    """Read an image as RGB, turned upright by its EXIF orientation.

    Transparency is laid on white; 16-bit grey is scaled to 8 bits; of an animation the first frame
    is taken; colour profiles are not applied.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: the file is missing, unreadable, too large to be decoded safely (Pillow's
            limit, 179 megapixels), or holds values whose range is unknown.
    """
    return _decode(path, _to_rgb)


def load_mask(path: str | Path) -> UInt8:
    """Read a mask, turned upright by its EXIF orientation: what is not black is foreground.

    Grey of any depth, RGB and palettes count by colour (a palette by its colours, not its indices:
    both are 0 for the background of PASCAL VOC and of a two-colour drawing). Where any pixel is
    fully transparent, the picture is a cut-out and its opacity alone decides. A JPEG blurs the
    values, so it is cut at half of the range.

    Returns:
        uint8 [H, W] of 0 and 1.

    Raises:
        InputError: as `load_image`.
    """
    return _decode(path, _to_mask)


def check_image(path: str | Path) -> None:
    """Read a file's header alone: a cheap first look at a batch.

    Raises:
        InputError: the file is missing, no image, or too large to be decoded safely.
    """
    _decode(path, lambda image: np.zeros(0, np.uint8))


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
        mask: [H, W]; non-zero is foreground.
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


def polygons_from_coco(path: str | Path, image: str | int, category: str) -> UInt8:
    """Rasterise one category's polygons in one image of a COCO annotation file.

    A pixel is foreground where its centre lies inside any of the outlines (even-odd rule).
    Annotations of crowds are passed over.

    Args:
        path: the annotation file.
        image: the image's id, or its file name with or without folders.
        category: the category's name.

    Returns:
        uint8 [height, width] as the file gives them.

    Raises:
        InputError: the file is no COCO file, the image or the category is not in it or more than
            once, no annotation matches, or one is run-length encoded.
    """
    coco = _read_coco(path)
    entry = _only(
        [i for i in coco.images if image in (i.id, i.file_name, Path(i.file_name).name)],
        f"image {image!r}",
        path,
    )
    kind = _only([c for c in coco.categories if c.name == category], f"category {category!r}", path)
    mask = np.zeros((entry.height, entry.width), np.uint8)
    found = False
    for annotation in coco.annotations:
        if (annotation.image_id, annotation.category_id) != (entry.id, kind.id):
            continue
        if annotation.iscrowd:
            continue
        for polygon in _polygons(path, annotation):
            mask |= _rasterise(polygon, entry.height, entry.width)
            found = True
    if not found:
        raise InputError(f"{path}: image {image!r} has no polygons of category {category!r}")
    return mask


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


def _decode(path: str | Path, convert: Callable[[Image.Image], UInt8]) -> UInt8:
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses; large photographs are fine.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return convert(image)
    except FileNotFoundError as error:
        raise InputError(f"image {path} is not there") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"image {path} is too large to be decoded safely: {error}", "make it smaller"
        ) from error
    except InputError as error:
        raise InputError(f"image {path}: {error.what}", error.hint) from error
    # Pillow's readers raise nearly anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no picture format that Pillow knows" if unknown else error
        raise InputError(f"image {path} cannot be read: {reason}") from error


def _to_rgb(image: Image.Image) -> UInt8:
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return np.repeat(_scaled_grey(image)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, clear)
    return np.array(image.convert("RGB"))


def _to_mask(image: Image.Image) -> UInt8:
    threshold = 127 if image.format in {"JPEG", "MPO"} else 0
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return _where(np.asarray(image) != 0)
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA"))[:, :, 3]
        if not opacity.all():
            return _where(opacity != 0)
    return _where(np.asarray(image.convert("RGB")).max(axis=2) > threshold)


def _where(condition: npt.NDArray[np.bool_]) -> UInt8:
    return condition.astype(np.uint8)


def _scaled_grey(image: Image.Image) -> UInt8:
    """Return 16-bit grey as 8 bits, which Pillow's own conversion would cut off at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise InputError(
            f"it holds {values.dtype} values, whose range is unknown", "save it with 8 or 16 bits"
        )
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


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
            f"{path}: annotation {annotation.id} holds no polygons (run-length encoded?)",
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


def _neighbours(
    source: int, target: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32]:
    """Return for each target cell its two source cells and the second one's share."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    centre = np.clip(centre, 0, source - 1)
    first = np.floor(centre).astype(np.intp)
    second = np.minimum(first + 1, source - 1)
    return first, second, (centre - first).astype(np.float32)


def _eroded(inside: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Return the mask without its outermost `steps` pixels; the picture's border is no edge."""
    kept = inside
    for _ in range(steps):
        padded = np.pad(kept, 1, mode="edge")
        kept = kept & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return kept
