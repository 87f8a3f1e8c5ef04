"""Images and masks are read as they look, whatever their file's mode."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images import (
    check_image,
    load_image,
    load_mask,
)


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


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 1, 255]], np.uint8),
        np.array([[False, True, True]]),
        np.array([[0, 1, 65535]], np.uint16),
        np.array([[0.0, 0.5, 1.0]], np.float32),
        np.array([[[0, 0, 0], [0, 0, 1], [255, 255, 255]]], np.uint8),
        np.array([[[0, 0, 0, 255], [0, 1, 0, 255], [255, 255, 255, 255]]], np.uint8),
        np.array([[[9, 9, 9, 0], [0, 0, 0, 255], [1, 1, 1, 7]]], np.uint8),
    ],
    ids=["grey", "bits", "grey16", "float", "rgb", "opaque-rgba", "cut-out"],
)
def test_what_is_not_black_is_foreground(tmp_path, values):
    suffix = "tif" if values.dtype == np.float32 else "png"
    Image.fromarray(values).save(tmp_path / f"m.{suffix}")
    mask = load_mask(tmp_path / f"m.{suffix}")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 1, 1]])


@pytest.mark.parametrize(
    ("palette", "expected"),
    [([0, 0, 0, 128, 0, 0, 0, 128, 0], [0, 1, 1]), ([255, 255, 255, 0, 0, 0, 9, 9, 9], [1, 0, 1])],
    ids=["voc", "white-first"],
)
def test_a_palette_counts_by_colour(tmp_path, palette, expected):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette(palette)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png"), [expected])


def test_a_jpeg_mask_has_no_halo(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[17:41, 13:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=60)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.jpg"), mask // 255)
