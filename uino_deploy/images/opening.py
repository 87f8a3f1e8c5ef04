"""Pictures opened safely: known formats alone, regular files, bounded sizes; their EXIF turn."""

from __future__ import annotations

import ctypes
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from uino_deploy.errors import InputError
from uino_deploy.inputs import find_file, notice, open_regular, printable

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Received:
    """A picture that came as bytes and not as a file.

    Attributes:
        data: the bytes of its file.
        name: what messages call it.
    """

    data: bytes
    name: str

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name


Source = str | Path | Received

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
}
"""Pillow's names of the formats that are read, and their suffixes. Others (PostScript) could run
programs."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

UNREAD = frozenset(
    {".heic", ".heif", ".hif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".jxl"}
)
"""Suffixes of pictures that are not read, named as such when a folder holds them."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest picture that is decoded, unless `PIXELS_VARIABLE` says otherwise."""

PIXELS_VARIABLE = "UINO_DEPLOY_MAX_PIXELS"

MAX_BYTES = 2 << 30
"""Bytes of the largest picture file that is read."""

# Formats of several pictures; an MPO's others are views or previews of the first.
_FRAMES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)


@dataclass(frozen=True)
class Header:
    """What a picture's file says before its pixels are decoded.

    Attributes:
        format: Pillow's name of its format.
        height: rows, as stored.
        width: columns, as stored.
        orientation: EXIF's number of the turn that makes it upright, 1 to 8; 1 is none.
        raw: Pillow's name of the stored samples' layout, such as `RGB;16B`.
    """

    format: str
    height: int
    width: int
    orientation: int
    raw: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright picture."""
        sideways = self.orientation in _SIDEWAYS
        return (self.width, self.height) if sideways else (self.height, self.width)


def read_header(path: Source, what: str = "image") -> Header:
    """Read a picture's header: a cheap first look.

    Args:
        path: the file, or what was received.
        what: what it is, for messages.

    Raises:
        InputError: as `read_picture`, except for damage that only its pixels show.
    """
    with _opened(path, what) as image:
        return _header(image)


def read_picture(path: Source, what: str = "image") -> tuple[Image.Image, Header]:
    """Decode a picture; its header says how to turn it.

    Args:
        path: the file, or what was received; a name in another Unicode form is found too.
        what: what it is, for messages.

    Raises:
        InputError: the file is missing, no regular file, damaged, of no known format, or larger
            than the limits.
    """
    with _opened(path, what) as image:
        header = _header(image)
        several = header.format in _FRAMES and getattr(image, "is_animated", False)
        image.load()
        if image.mode in {"P", "PA"} and image.palette is None:
            raise ValueError("it has no palette")
        if header.format == "PNG":  # EXIF may follow the pixels
            header = replace(header, orientation=_orientation(image))
        if header.format == "TIFF":  # Pillow turns this format, and no other, while it decodes
            header = replace(header, height=image.height, width=image.width, orientation=1)
    if several:
        notice("frames", f"{what} {printable(path)} holds several pictures: the first is taken")
    return image, header


def turned(pixels: UInt8, orientation: int) -> UInt8:
    """Return pixels [H, W, ...] turned upright by EXIF's number, contiguous and writeable."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.require(pixels[::rows, ::columns], requirements=["C", "W"])


class _Clamped(io.BufferedReader):
    """A file that is asked for no more bytes than it has: sizes in damaged ones may be any."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes; memory is taken for those alone that there are."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def _opened(path: Source, what: str) -> Iterator[Image.Image]:
    named = f"{what} {printable(path)}"
    try:
        with warnings.catch_warnings():
            # Pillow warns at half the size that it refuses, and of EXIF tags that nobody reads.
            warnings.simplefilter("ignore")
            limit = _pixel_limit()
            with (
                open_picture(path, what) as file,
                Image.open(file, formats=_readable()) as image,
            ):
                if image.width * image.height > limit:
                    raise Image.DecompressionBombError(
                        f"{image.width} x {image.height} pixels, the limit is {limit}"
                    )
                yield image
    except FileNotFoundError as error:
        raise InputError(f"{named} does not exist") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{named} is too large to be decoded safely: {error}",
            f"make it smaller, or set {PIXELS_VARIABLE} to a larger number",
        ) from error
    except (InputError, MemoryError):
        raise
    # Pillow's readers raise nearly anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"not an image of a known format ({', '.join(FORMATS)})" if unknown else error
        raise InputError(f"{named} cannot be read: {reason}") from error


def open_picture(path: Source, what: str) -> io.BytesIO | io.BufferedReader:
    """Open a picture's bytes: a regular file of a bounded size, or what was received.

    Raises:
        InputError: it is no regular file, or larger than `MAX_BYTES`.
        OSError: it does not exist or cannot be opened.
    """
    if isinstance(path, Received):
        return io.BytesIO(path.data)
    return _Clamped(open_regular(find_file(Path(path)), what, MAX_BYTES).detach())


@cache
def _readable() -> tuple[str, ...]:
    """Return the known formats that this Pillow reads."""
    Image.init()
    _silence_libtiff()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_libtiff() -> None:
    """Let libtiff tell of a damaged file by its result alone: it writes lines of its own to stderr.

    Where a process cannot list its libraries (all but Linux), it goes on writing them.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for name in {line.split(maxsplit=5)[-1] for line in lines if "libtiff" in line}:
        with suppress(OSError, AttributeError):  # it was replaced on disk since
            library = ctypes.CDLL(name)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _pixel_limit() -> int:
    """Return the largest number of pixels; a larger one than Pillow's is set in Pillow too."""
    given = os.environ.get(PIXELS_VARIABLE)
    if given is None:
        return MAX_PIXELS
    if not given.isdecimal() or not 0 < int(given) < 2**40:
        raise InputError(f"{PIXELS_VARIABLE} is {given!r}", "set it to a number of pixels")
    Image.MAX_IMAGE_PIXELS = max(int(given), MAX_PIXELS) // 2 + 1
    return int(given)


def _header(image: Image.Image) -> Header:
    width, height = image.size
    orientation = _orientation(image)
    if image.format == "TIFF" and orientation in _SIDEWAYS and hasattr(image, "_tile_size"):
        height, width = width, height  # its size is the upright one already
    tile = getattr(image, "tile", None)
    raw = tile[0][3] if tile else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    return Header(image.format or "", height, width, orientation, str(raw))


def _orientation(image: Image.Image) -> int:
    """Return the turn alone: whatever else EXIF holds may be damaged."""
    try:
        # A PNG's own `getexif` would decode its pixels.
        value: Any = Image.Image.getexif(image).get(_ORIENTATION, 1)
        number = int(value[0] if isinstance(value, tuple) else value)
    except Exception:
        return 1
    return number if 1 <= number <= 8 else 1
