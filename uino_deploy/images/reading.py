"""Images and masks read from files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from uino_deploy.errors import InputError

UInt8 = npt.NDArray[np.uint8]


def load_image(path: str | Path) -> UInt8:
    """Read an image as RGB, turned upright by its EXIF orientation.

    Transparent pixels are blended with white; 16-bit grey is scaled to 8 bits; an animation gives
    its first frame; colour profiles are not applied.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: the file is missing, unreadable, too large to be decoded safely (Pillow's
            limit, 179 megapixels), or holds values whose range is unknown.
    """
    return _decode(path, _to_rgb)


def load_mask(path: str | Path) -> UInt8:
    """Read a mask, turned upright by its EXIF orientation; every pixel but black is foreground.

    Grey of any depth, RGB and palettes count by colour (a palette by its colours, not its indices:
    both are 0 for the background of PASCAL VOC and of a two-colour drawing). If any pixel is fully
    transparent, the image is a cut-out and only its opacity decides. JPEG blurs the values, so a
    JPEG mask is cut at half the range.

    Returns:
        uint8 [H, W] of 0 and 1.

    Raises:
        InputError: as `load_image`.
    """
    return _decode(path, _to_mask)


def check_image(path: str | Path) -> None:
    """Read only a file's header: a cheap first look at a batch.

    Raises:
        InputError: the file is missing, is not an image, or is too large to be decoded safely.
    """
    _decode(path, lambda image: np.zeros(0, np.uint8))


def _decode(path: str | Path, convert: Callable[[Image.Image], UInt8]) -> UInt8:
    try:
        with warnings.catch_warnings():
            # Pillow warns at half the size that it refuses; large photographs are fine.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return convert(image)
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"image {path} is too large to be decoded safely: {error}", "make it smaller"
        ) from error
    except InputError as error:
        raise InputError(f"image {path}: {error.what}", error.hint) from error
    # Pillow's readers raise nearly anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image format that Pillow knows" if unknown else error
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
    """Return 16-bit grey scaled to 8 bits; Pillow's own conversion would clip it at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise InputError(
            f"it holds {values.dtype} values, whose range is unknown", "save it with 8 or 16 bits"
        )
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
