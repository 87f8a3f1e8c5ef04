"""Numbers of more than 8 bits brought to 8: their range from the file, else assumed and said."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images.opening import Header, Source, UInt8, open_picture
from uino_deploy.inputs import notice, printable

_BITS = (8, 10, 12, 14, 16)
_PHOTOMETRIC, _SMALLEST, _LARGEST = 262, (340, 280), (341, 281)


def white_is_zero(image: Image.Image) -> bool:
    """Return whether 0 is white in a grey picture's numbers; up to 8 bits Pillow turns it round."""
    return image.mode[0] in "IF" and _tag(image, (_PHOTOMETRIC,)) == 0


def to_8_bits(image: Image.Image, path: Source, bits: int | None) -> UInt8:
    """Scale a grey picture of 16 or 32 bits to 8 bits.

    The range is that of `bits`, else what the file states (TIFF: SMinSampleValue and
    SMaxSampleValue, or MinSampleValue and MaxSampleValue; PNG: sBIT), else that of 8, 10, 12, 14
    or 16 bits, the first that holds every number; a notice says which if it is not 16.

    Returns:
        uint8 [H, W].

    Raises:
        InputError: numbers beyond the range, or one that is unknown: floats, or integers beyond 16
            bits, of which the file says nothing.
    """
    values = np.asarray(image)
    low, high = _range(image, values, path, bits)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    grey = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
    return 255 - grey if white_is_zero(image) else grey


def check_16_bit_colours(image: Image.Image, header: Header) -> None:
    """Refuse colours of 16 bits that use only the low ones: Pillow keeps the 8 highest.

    Raises:
        InputError: every number lies below 16384, a quarter of the range.
    """
    if "16" in header.raw and image.mode[0] not in "IF":
        largest = max(high for _, high in _extrema(image)[:3])
        if largest < 64:
            raise InputError(
                "it has 16 bits a colour, and none above a quarter of the range: its real depth "
                "is unknown",
                "save it with 8 bits a colour",
            )


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _range(
    image: Image.Image, values: npt.NDArray[Any], path: Source, bits: int | None
) -> tuple[float, float]:
    smallest, largest = float(values.min()), float(values.max())
    if not np.isfinite([smallest, largest]).all():
        raise InputError("it holds numbers that are not finite")
    if bits is not None:
        if smallest < 0 or largest >= 2**bits or values.dtype.kind == "f":
            raise InputError(f"it holds {values.dtype} values to {largest:g}, not {bits} bits")
        return 0.0, float(2**bits - 1)
    low, high = _tag(image, _SMALLEST), _tag(image, _LARGEST)
    if high is not None and high > (low or 0.0) and largest <= high and smallest >= (low or 0.0):
        return low or 0.0, high
    if values.dtype.kind == "f" or smallest < 0 or largest > 65535:
        raise InputError(
            f"it holds {values.dtype} values, whose range is unknown",
            "save it with 8 or 16 bits" + (", or give --bits" if values.dtype.kind != "f" else ""),
        )
    stated = _significant_bits(path) if image.format == "PNG" else None
    if stated is not None and largest < 2**stated:
        return 0.0, float(2**stated - 1)
    assumed = next(each for each in _BITS if largest < 2**each)
    if assumed < 16 and largest:
        notice(
            "bits",
            f"image {printable(path)} has 16 bits and no number above {largest:.0f}: it is read as "
            f"{assumed} bits; if it is only dark, give --bits 16",
        )
    return 0.0, float(2**assumed - 1)


def _tag(image: Image.Image, names: tuple[int, ...]) -> float | None:
    """Return the first of a TIFF's tags that holds a number."""
    tags: Any = getattr(image, "tag_v2", None)
    for name in names if tags is not None else ():
        try:
            value = tags.get(name)
            return float(value[0] if isinstance(value, tuple) else value)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            continue
    return None


def _significant_bits(path: Source) -> int | None:
    """Return a grey PNG's sBIT, which Pillow does not read."""
    with open_picture(path, "image") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", start)
            if kind == b"sBIT" and length == 1:
                bits = file.read(1)[0]
                return bits if 1 <= bits <= 16 else None
            if kind == b"IDAT":
                return None
            file.seek(length + 4, 1)
    return None
