"""Images and masks read from files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images.levels import (
    IGNORED,
    Marked,
    decide,
    decide_colours,
    decide_indices,
)
from uino_deploy.images.numbers import check_16_bit_colours, to_8_bits, white_is_zero
from uino_deploy.images.opening import Header, Source, UInt8, read_header, read_picture, turned
from uino_deploy.inputs import notice, printable

# Rows are converted in strips: Pillow takes four bytes a pixel, and a copy as many again.
_STRIP_PIXELS = 1 << 20


def load_image(path: Source, bits: int | None = None) -> UInt8:
    """Read an image as RGB, turned upright by its EXIF orientation.

    Transparent pixels are blended with white; an animation gives its first frame; colour profiles
    are not applied. Grey of more than 8 bits is scaled to 8 bits, from the range that the file
    states or that its largest number suggests.

    Args:
        path: the file, or what was received.
        bits: real depth of grey numbers of more than 8 bits; None to find it.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: the file is missing, unreadable, larger than the limits of
            `uino_deploy.images.opening`, or holds values whose range is unknown.
    """
    image, header = read_picture(path)
    try:
        check_16_bit_colours(image, header)
        if image.mode[0] in "IF":
            grey = to_8_bits(image, path, bits)
            return turned(np.repeat(grey[:, :, None], 3, axis=2), header.orientation)
        return turned(_to_rgb(image), header.orientation)
    except InputError as error:
        raise InputError(f"image {printable(path)}: {error.what}", error.hint) from error


def load_mask(path: Source, image: Source | None = None, label: int | None = None) -> UInt8:
    """Read a mask; as `load_marked`, with what is ignored as background.

    Returns:
        uint8 [H, W] of 0 and 1.
    """
    mask = load_marked(path, image, label)
    mask[mask == IGNORED] = 0
    return mask


def load_marked(path: Source, image: Source | None = None, label: int | None = None) -> UInt8:
    """Read a mask, turned upright by its EXIF orientation, and decide from its values.

    `uino_deploy.images.levels` says how: two levels, labels with an ignored border, or soft values
    that are cut at half. A palette of greys counts by its greys, one of colours by its indices. In
    a cut-out the opacity decides. What has to be assumed is said by an `InputNotice`.

    Args:
        path: the mask's file, or what was received.
        image: the image that it marks: a mask of the image as stored is turned with it.
        label: the object's value, where the mask holds labels.

    Returns:
        uint8 [H, W]: 0, 1, or 255 for what is ignored.

    Raises:
        InputError: as `load_image`, or the values allow more than one reading.
    """
    picture, header = read_picture(path)
    try:
        check_16_bit_colours(picture, header)
        marked = _marked(picture, label)
    except InputError as error:
        raise InputError(f"mask {printable(path)}: {error.what}", error.hint) from error
    if marked.assumed:
        notice(f"{marked.kind} masks", f"mask {printable(path)}: {marked.assumed}")
    mask = turned(marked.mask, header.orientation)
    if image is not None and header.orientation == 1:
        return turn_with(mask, image, f"mask {printable(path)}")
    return mask


def turn_with(mask: UInt8, image: Source, what: str) -> UInt8:
    """Turn a mask of an image's stored pixels upright as the image is.

    Its size decides. Where it cannot, as after half a turn, the mask is taken for one of the
    upright image, and a notice says so.

    Args:
        mask: uint8 [H, W].
        image: the image's file.
        what: the mask, for the notice.

    Raises:
        InputError: the image is missing or unreadable.
    """
    header = read_header(image)
    stored = (header.height, header.width)
    if header.orientation == 1 or mask.shape not in (stored, header.shape):
        return mask
    its = f"{printable(image)} is turned by its EXIF orientation {header.orientation}"
    if stored == header.shape:
        notice(
            "turned images",
            f"{its} and {what} is not: it is taken for a mask of the upright image; if it marks "
            "the stored pixels, take the orientation out of the image",
        )
        return mask
    if mask.shape == header.shape:
        return mask
    notice("turned masks", f"{its}; {what} has the size of the stored pixels: it is turned too")
    return turned(mask, header.orientation)


def check_image(path: Source) -> Header:
    """Read only a file's header: a cheap first look at a batch.

    Raises:
        InputError: the file is missing, is not an image, or is too large to be decoded safely.
    """
    return read_header(path)


def _to_rgb(image: Image.Image) -> UInt8:
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    clear = image.has_transparency_data
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if clear:
            strip.info = image.info
            above = strip.convert("RGBA")
            white = Image.new("RGBA", above.size, (255, 255, 255, 255))
            strip = Image.alpha_composite(white, above)
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _marked(image: Image.Image, label: int | None) -> Marked:
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if white_is_zero(image):
            values = (255 if values.max(initial=0) <= 255 else 65535) - values
        return decide(values, label)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if (rgba[:, :, 3] != 255).any():
            return _of_transparent(rgba, label)
    if image.mode == "P":
        return _of_palette(image, label)
    if image.mode in {"1", "L", "LA", "La"}:
        return decide(np.asarray(image.convert("L")), label)
    return decide_colours(np.asarray(image.convert("RGB")), label)


def _of_palette(image: Image.Image, label: int | None) -> Marked:
    """Decide a palette's mask: labels if index 0 is black and others have colours."""
    indices, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    greys = bool(np.equal(colours, colours[:, :, :1]).all())
    lit = colours.max(axis=2) > 0
    black, other = not lit[indices == 0].any(), not lit[indices != 0].all()
    if label is not None or (black and not other and not greys):
        return decide_indices(indices, label)
    return decide_colours(colours)


def _of_transparent(rgba: UInt8, label: int | None) -> Marked:
    """Decide a mask with opacity: a cut-out's opacity, or the colours if they are a mask too."""
    visible = rgba[rgba[:, :, 3] != 0][:, :3]
    hidden = 1 - len(visible) / (rgba.shape[0] * rgba.shape[1])
    levels = np.unique(visible, axis=0) if len(visible) else visible
    if label is None and (len(levels) != 2 or levels[0].any()):
        return decide(rgba[:, :, 3])
    if hidden > 0.01:
        raise InputError(
            f"both its colours and its opacity mark something ({hidden:.1%} is transparent)",
            "save it without transparency",
        )
    colours = np.where(rgba[:, :, 3:] == 0, np.uint8(0), rgba[:, :, :3])
    marked = decide_colours(colours, label)
    told = f"its colours decide, and the {hidden:.1%} that is transparent is background"
    return Marked(marked.mask, told, "transparent")
