"""Images and masks are read as they look, whatever their file's mode."""

import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import uino_deploy
from uino_deploy.errors import InputError
from uino_deploy.images import (
    check_image,
    load_image,
    load_mask,
)
from uino_deploy.images.opening import PIXELS_VARIABLE, Received
from uino_deploy.inputs import InputNotice


def test_rgb_is_read_as_it_is(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    read = load_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, picture)


def test_grey_is_repeated(tmp_path, picture):
    Image.fromarray(picture[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.png"), np.repeat(picture[:, :, :1], 3, axis=2)
    )


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path):
    ramp = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        np.testing.assert_array_equal(load_image(tmp_path / name)[0, :, 0], [0, 0, 1, 128, 255])


def test_transparency_is_laid_on_white(tmp_path):
    clear = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(clear).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.png")[0], [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    )


def test_grey_with_alpha_and_palettes_with_transparency(tmp_path):
    Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0, :, 0], [255, 9])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(load_image(tmp_path / "p.png")[0], [[10, 20, 30], [40, 50, 60]])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "p.png")[0, 0], [255, 255, 255])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBX", "tif")]
)
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    Image.new(mode, (5, 4)).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}").shape == (4, 5, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_and_mask_alike(tmp_path, orientation):
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:4, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    image, mask = load_image(tmp_path / "a.png"), load_mask(tmp_path / "a.png")
    np.testing.assert_array_equal(mask, image[:, :, 0] == 255)
    assert mask.shape == ((8, 16) if orientation < 5 else (16, 8))
    rows, columns = np.nonzero(mask)
    corner = (rows.min() > 0, columns.min() > 0)
    by_orientation = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)]
    assert corner == by_orientation[orientation - 1]


@pytest.mark.parametrize("read", [load_image, load_mask, check_image])
def test_a_missing_file_and_one_that_is_no_image(tmp_path, read):
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        read(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read: not an image"):
        read(tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif"])
def test_a_truncated_file(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"a.{suffix} cannot be read") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def bomb(path, side):
    """Write a PNG whose header promises side x side pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end)


@pytest.mark.parametrize("read", [load_image, load_mask, check_image])
def test_a_decompression_bomb(tmp_path, read):
    bomb(tmp_path / "a.png", 60_000)
    with pytest.raises(InputError, match="too large to be decoded safely"):
        read(tmp_path / "a.png")


def test_a_large_photograph_is_no_bomb_and_no_warning(tmp_path):
    bomb(tmp_path / "a.png", 11_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_image(tmp_path / "a.png")


def test_values_of_unknown_range(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif.*float32.*8 or 16 bits"):
        load_image(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="int32"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [load_image, load_mask, check_image])
def test_postscript_named_png_starts_no_program(tmp_path, monkeypatch, read):
    program, mark = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {mark}\necho 10\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    bounds = "%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n" + bounds)
    with pytest.raises(InputError, match=r"a\.png cannot be read: not an image of a known format"):
        read(tmp_path / "a.png")
    assert not mark.exists()


def test_every_file_is_opened_by_its_list_of_formats():
    package = Path(uino_deploy.__file__).parent
    rooms = [package / name for name in ("images", "data", "runtime", "evaluation", "training")]
    texts = {path.name: path.read_text() for room in rooms for path in room.rglob("*.py")}
    callers = {name: text for name, text in texts.items() if "Image.open(" in text}
    assert set(callers) == {"opening.py", "things.py"}  # the latter reads what the package ships
    for text in callers.values():
        assert text.count("Image.open(") == text.count(" formats=")


@pytest.mark.parametrize("read", [load_image, load_mask, check_image])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png cannot be read: it is a named pipe"):
        read(tmp_path / "a.png")


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"has 1099511627776 bytes, the limit is 2147483648"):
        load_image(tmp_path / "a.png")


def test_the_limit_of_pixels_is_named_and_can_be_set(tmp_path, picture, monkeypatch):
    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS_VARIABLE, "1199")
    with pytest.raises(InputError, match=f"40 x 30 pixels, the limit is 1199.*{PIXELS_VARIABLE}"):
        load_image(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS_VARIABLE, "1200")
    assert load_image(tmp_path / "a.png").shape == (30, 40, 3)
    monkeypatch.setenv(PIXELS_VARIABLE, "many")
    with pytest.raises(InputError, match="set it to a number of pixels"):
        load_image(tmp_path / "a.png")


def test_a_wide_transparent_picture_is_the_same_in_strips(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 400_000, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    share = pixels[:, :, 3:] / 255
    expected = pixels[:, :, :3] * share + 255 * (1 - share)
    np.testing.assert_allclose(load_image(tmp_path / "a.png"), expected, atol=1)


def test_only_the_turn_is_taken_from_exif(tmp_path):
    """An XResolution that is no number, and an orientation that is one."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (60, 40)).save(path)
    data = path.read_bytes()
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x11A, 7, 4, b"abcd")
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + bytes(4)
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    assert load_image(path).shape == (60, 40, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turn_is_pillows_in_every_format(tmp_path, orientation, suffix):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(load_image(path), expected)
    assert check_image(path).shape == expected.shape[:2]


def turned_image(path, orientation, height=20, width=30):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


def test_a_mask_of_the_stored_pixels_is_turned_with_its_image(tmp_path):
    image = turned_image(tmp_path / "a.png", 6)
    mask = np.zeros((20, 30), np.uint8)
    mask[:5, :5] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.warns(InputNotice, match="has the size of the stored pixels: it is turned too"):
        read = load_mask(tmp_path / "m.png", image)
    assert read.shape == (30, 20)
    assert read[:5, -5:].all()
    Image.fromarray(np.rot90(mask, -1)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png", image), read)


@pytest.mark.parametrize(("orientation", "width"), [(2, 30), (3, 30), (4, 30), (6, 20)])
def test_what_is_assumed_where_the_size_cannot_tell(tmp_path, orientation, width):
    image = turned_image(tmp_path / "a.png", orientation, width=width)
    mask = np.zeros((20, width), np.uint8)
    mask[:5, :5] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.warns(InputNotice, match="taken for a mask of the upright image"):
        read = load_mask(tmp_path / "m.png", image)
    np.testing.assert_array_equal(read, mask // 255)


# --- numbers of more than 8 bits


def grey_tiff(path, values, photometric=1, extra=()):
    """Write an uncompressed grey TIFF with tags that Pillow would not write."""
    height, width = values.shape
    data = values.tobytes()
    kinds = {"u": 1, "i": 2, "f": 3}
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 8 * values.itemsize), (259, 3, 1),
        (262, 3, photometric), (273, 4, 0), (277, 3, 1), (278, 4, height), (279, 4, len(data)),
        (339, 3, kinds[values.dtype.kind]), *extra,
    ]  # fmt: skip
    tags.sort()
    start = 8 + 2 + 12 * len(tags) + 4
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        body += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    path.write_bytes(body + bytes(4) + data)


GREYS = np.array([[0, 10, 100, 200, 250]])


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_smaller_depth_in_16_bits_is_found_and_said(tmp_path, bits):
    values = (GREYS * (2**bits - 1) // 255).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.warns(InputNotice, match=f"it is read as {bits} bits.*--bits 16"):
        read = load_image(tmp_path / "a.png")
    np.testing.assert_allclose(read[0, :, 0], GREYS[0], atol=1)
    assert load_image(tmp_path / "a.png", bits=16).max() <= 2**bits // 256
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", bits=bits), read)
    with pytest.raises(InputError, match="not 6 bits"):
        load_image(tmp_path / "a.png", bits=6)


def test_what_the_file_states_of_its_range_counts(tmp_path):
    dark = (GREYS * 4 // 2).astype("<u2")  # half of 10 bits: 9 would be assumed 10 too
    grey_tiff(tmp_path / "a.tif", dark, extra=[(341, 3, 2000)])
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[0, -1, 0], 64)
    grey_tiff(tmp_path / "a.tif", dark + 1000, extra=[(340, 3, 1000), (341, 3, 1510)])
    np.testing.assert_allclose(load_image(tmp_path / "a.tif")[0, :, 0], GREYS[0], atol=1)
    grey_tiff(tmp_path / "a.tif", (GREYS * 1000).astype("<i4"), extra=[(341, 4, 255_000)])
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[0, :, 0], GREYS[0])


def test_a_pngs_significant_bits_count(tmp_path):
    values = (GREYS * 16 // 2).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    chunk = b"sBIT\x0c"
    chunk = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    np.testing.assert_allclose(load_image(tmp_path / "a.png")[0, :, 0], GREYS[0] / 2, atol=1)


def test_white_is_zero_in_16_bits(tmp_path):
    grey_tiff(tmp_path / "a.tif", (65535 - GREYS * 257).astype("<u2"), photometric=0)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[0, :, 0], GREYS[0])
    grey_tiff(tmp_path / "m.tif", np.array([[65535, 0, 65535]], "<u2"), photometric=0)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.tif"), [[0, 1, 0]])


def test_32_bit_integers_with_a_known_depth(tmp_path):
    Image.fromarray((GREYS * 4095 // 255).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.warns(InputNotice, match="12 bits"):
        read = load_image(tmp_path / "a.tif")
    np.testing.assert_allclose(read[0, :, 0], GREYS[0], atol=1)
    Image.fromarray((GREYS * 1000).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"int32.*--bits"):
        load_image(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif", bits=18)[0, -1, 0] == 243


def test_16_bit_colours_in_the_low_bits_are_refused(tmp_path):
    """Pillow keeps the 8 highest bits: such a picture is black."""
    rows = np.full((4, 5, 3), 4000, ">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    body = head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(InputError, match="16 bits a colour, and none above a quarter"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_the_first_is_taken_and_that_is_said(tmp_path, suffix):
    first, second = (Image.new("RGB", (9, 9), colour) for colour in ("white", "black"))
    path = tmp_path / f"two.{suffix}"
    first.save(path, save_all=True, append_images=[second])
    with pytest.warns(InputNotice, match=rf"two\.{suffix} holds several pictures: the first"):
        assert load_image(path).min() > 200


# --- bytes that were received, not a file


def test_received_bytes_are_read_as_a_file_is(tmp_path, picture):
    grey = np.linspace(0, 1023, 600).reshape(20, 30).astype(np.uint16)
    for name, array in (("a.png", picture), ("a.jpg", picture), ("deep.png", grey)):
        Image.fromarray(array).save(tmp_path / name)
        data = Received((tmp_path / name).read_bytes(), "image 1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputNotice)
            assert (load_image(data) == load_image(tmp_path / name)).all()
    assert check_image(data).shape == (20, 30)


def test_received_bytes_that_are_no_picture_are_named(picture):
    with pytest.raises(InputError, match="image 1 cannot be read: not an image"):
        load_image(Received(b"hello", "image 1"))
    with pytest.raises(InputError, match="mask 2 cannot be read: not an image"):
        load_mask(Received(b"", "mask 2"))


# --- damage that was found by `make fuzz`


def test_a_size_beyond_the_file_takes_no_memory(tmp_path):
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    (tmp_path / "a.jp2").write_bytes(start + struct.pack(">I4sQ", 1, b"jp2h", 1 << 62) + bytes(40))
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path / "a.jp2")


def test_a_palette_that_is_missing_is_refused(tmp_path, picture):
    Image.fromarray(picture).quantize(8).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", data, at)
    (tmp_path / "a.png").write_bytes(data[:at] + data[at + length + 12 :])
    for read in (load_image, load_mask):
        with pytest.raises(InputError, match=r"cannot be read: .*palette"):
            read(tmp_path / "a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libtiff goes on writing")
def test_libtiff_writes_nothing_beside_the_error(tmp_path, picture, capfd):
    Image.fromarray(picture).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[8:20] = b"\xff" * 12
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""
