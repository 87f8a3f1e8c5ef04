"""Reading, preprocessing and drawing of images and masks."""

import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_image,
    class_colour,
    load_image,
    load_mask,
    overlay,
    polygons_from_coco,
    preprocess_image,
    preprocess_mask,
    upsample_logits,
)

sides = st.integers(1, 70)
# A loaded machine must not fail a test for being slow.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


# --- reading images


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
    with pytest.raises(InputError, match=r"a\.png is not there"):
        read(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read: no picture"):
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


# --- reading masks


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


# --- preprocessing


def test_an_image_of_the_right_size_is_only_normalised(picture):
    square = picture[:28, :28]
    ready = preprocess_image(square, 28)
    assert ready.dtype == np.float32
    assert ready.flags.c_contiguous
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    expected = ((square / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(ready, expected, atol=1e-6)


def test_an_image_is_squashed_by_pillows_bicubic_filter(picture):
    ready = preprocess_image(picture, 14)
    resized = np.asarray(Image.fromarray(picture).resize((14, 14), Image.Resampling.BICUBIC))
    back = ready.transpose(1, 2, 0) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    np.testing.assert_allclose(back * 255, resized, atol=1e-3)


def test_a_mask_is_averaged_patch_by_patch_row_by_row():
    mask = np.zeros((28, 42), np.uint8)
    mask[:14, 21:] = 200
    shares = preprocess_mask(mask, 28, 14)
    np.testing.assert_allclose(shares, [0, 1, 0, 0], atol=1e-6)


@unhurried
@given(
    grid=st.integers(1, 6),
    patch=st.integers(1, 14),
    factors=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)
def test_whole_ratios_keep_a_masks_mean(grid, patch, factors, seed, density):
    size = grid * patch
    rng = np.random.default_rng(seed)
    mask = (rng.random((size * factors[0], size * factors[1])) < density).astype(np.uint8)
    shares = preprocess_mask(mask, size, patch)
    assert shares.shape == (grid**2,)
    assert abs(shares.mean(dtype=np.float64) - mask.mean()) < 1e-5


@unhurried
@given(height=sides, width=sides, grid=st.integers(1, 5), seed=st.integers(0, 1000))
def test_any_masks_shares_lie_in_the_unit_interval(height, width, grid, seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (height, width), dtype=np.uint8)
    shares = preprocess_mask(mask, grid * 14, 14)
    assert shares.dtype == np.float32
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert (preprocess_mask(np.ones_like(mask), grid * 14, 14) == 1).all()
    assert (preprocess_mask(np.zeros_like(mask), grid * 14, 14) == 0).all()


@unhurried
@given(height=sides, width=sides, seed=st.integers(0, 1000))
def test_one_marked_pixel_is_never_lost(height, width, seed):
    mask = np.zeros((height, width), np.uint8)
    rng = np.random.default_rng(seed)
    mask[rng.integers(height), rng.integers(width)] = 1
    assert preprocess_mask(mask, 56, 14).any()


@unhurried
@given(source=st.tuples(sides, sides), target=st.tuples(sides, sides), seed=st.integers(0, 1000))
def test_upsampling_is_pytorchs(source, target, seed):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(seed).normal(size=source).astype(np.float32)
    # In float64: in float32 PyTorch rounds the coordinates too, which moves results by some 1e-5.
    exact = torch.from_numpy(logits).double()[None, None]
    expected = torch.nn.functional.interpolate(
        exact, size=target, mode="bilinear", align_corners=False
    )
    ours = upsample_logits(logits, *target)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected[0, 0].numpy(), atol=3e-6)


# --- COCO


def write_coco(path, segmentation, **changes):
    annotation = {"id": 7, "image_id": 1, "category_id": 3, "segmentation": segmentation}
    content = {
        "info": {"ignored": True},
        "images": [{"id": 1, "file_name": "train/a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "bottle"}, {"id": 4, "name": "cup"}],
        "annotations": [annotation | changes],
    }
    path.write_text(json.dumps(content))
    return path


def test_a_polygon_fills_the_pixels_whose_centres_it_holds(tmp_path):
    path = write_coco(tmp_path / "c.json", [[5, 5, 15, 5, 15, 15, 5, 15]])
    for image in ("a.jpg", "train/a.jpg", 1):
        mask = polygons_from_coco(path, image, "bottle")
        assert mask.shape == (20, 30)
        assert mask.sum() == 100
        assert mask[5:15, 5:15].all()


def test_polygons_are_joined_and_cut_at_the_border(tmp_path):
    square = [2, 2, 6, 2, 6, 6, 2, 6]
    path = write_coco(tmp_path / "c.json", [square, square, [25, -5, 99, -5, 99, 5, 25, 5]])
    mask = polygons_from_coco(path, "a.jpg", "bottle")
    assert mask.sum() == 16 + 25
    assert mask[:5, 25:].all()


@unhurried
@given(
    points=st.lists(
        st.tuples(st.floats(-5, 35, width=32), st.floats(-5, 25, width=32)), min_size=3, max_size=8
    )
)
def test_a_polygon_agrees_with_a_point_by_point_even_odd_test(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("coco") / "c.json"
    write_coco(path, [[value for point in points for value in point]])
    mask = polygons_from_coco(path, 1, "bottle")
    for row, column in ((0, 0), (7, 3), (10, 15), (19, 29), (4, 22)):
        x, y = column + 0.5, row + 0.5
        crossings, near = 0, False
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                near |= abs(at - x) < 1e-6
                crossings += at <= x
        assert near or mask[row, column] == crossings % 2


@pytest.mark.parametrize(
    ("segmentation", "changes", "image", "category", "words"),
    [
        ([[1, 1, 9, 1, 9, 9]], {}, "b.jpg", "bottle", "image 'b.jpg' 0 times"),
        ([[1, 1, 9, 1, 9, 9]], {}, "a.jpg", "glass", "category 'glass' 0 times"),
        ([[1, 1, 9, 1, 9, 9]], {}, "a.jpg", "cup", "no polygons of category 'cup'"),
        ([[1, 1, 9, 1, 9, 9]], {"iscrowd": 1}, "a.jpg", "bottle", "no polygons"),
        ([], {}, "a.jpg", "bottle", "no polygons"),
        ([[1, 1, 9, 1]], {}, "a.jpg", "bottle", "polygon of 4 numbers"),
        ({"counts": "abc", "size": [20, 30]}, {}, "a.jpg", "bottle", "run-length"),
    ],
)
def test_coco_files_that_do_not_answer(tmp_path, segmentation, changes, image, category, words):
    path = write_coco(tmp_path / "c.json", segmentation, **changes)
    with pytest.raises(InputError, match=words):
        polygons_from_coco(path, image, category)


@pytest.mark.parametrize("text", ["", "[]", '{"images": 1}', '{"images": []}'])
def test_what_is_no_coco_file(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="not a COCO"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")
    with pytest.raises(InputError, match="cannot be read"):
        polygons_from_coco(tmp_path / "none.json", "a.jpg", "bottle")


# --- drawing


def test_an_overlay_tints_the_inside_and_outlines_it(picture):
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[5:20, 10:30] = 1
    before = picture.copy()
    drawn = overlay(picture, mask, (255, 0, 0))
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(drawn[mask == 0], picture[mask == 0])
    assert (drawn[5, 10:30] == (255, 0, 0)).all()
    inside = drawn[10, 15].astype(int)
    np.testing.assert_allclose(inside, 0.6 * picture[10, 15] + (102, 0, 0), atol=1)


def test_a_mask_that_reaches_the_border_has_no_contour_along_it():
    image = np.zeros((30, 30, 3), np.uint8)
    drawn = overlay(image, np.ones((30, 30), np.uint8), (200, 100, 50))
    assert (drawn == (80, 40, 20)).all()


def test_twenty_classes_have_colours_far_apart():
    colours = np.array([class_colour(index) for index in range(20)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() > 40
