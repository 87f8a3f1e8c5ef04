"""What a mask marks is decided from its values, never from its format; what is assumed is said."""

import io
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from uino_deploy.errors import InputError
from uino_deploy.images import load_marked, load_mask
from uino_deploy.inputs import InputNotice


@pytest.fixture
def square():
    """Return a mask of 0 and 1 with a square that no 8 x 8 block of a coder fits."""
    mask = np.zeros((64, 64), np.uint8)
    mask[17:41, 13:50] = 1
    return mask


def saved(path, values, **options):
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 255, 255]], np.uint8),
        np.array([[0, 1, 1]], np.uint8),
        np.array([[0, 128, 128]], np.uint8),
        np.array([[16, 235, 235]], np.uint8),
        np.array([[False, True, True]]),
        np.array([[0, 65535, 65535]], np.uint16),
        np.array([[0, 1, 1]], np.uint16),
        np.array([[0, 1, 1]], np.float32),
        np.array([[[0, 0, 0], [0, 0, 1], [0, 0, 1]]], np.uint8),
        np.array([[[0, 0, 0, 255], [0, 200, 0, 255], [0, 200, 0, 255]]], np.uint8),
        np.array([[[9, 9, 9, 0], [0, 0, 0, 255], [1, 2, 3, 255]]], np.uint8)[:, [0, 2, 2]],
    ],
    ids=[
        "grey", "small", "middle", "video", "bits", "grey16", "small16", "float", "rgb",
        "opaque-rgba", "cut-out",
    ],
)  # fmt: skip
def test_of_two_levels_the_one_that_is_not_black_is_the_object(tmp_path, values):
    suffix = "tif" if values.dtype == np.float32 else "png"
    mask = load_mask(saved(tmp_path / f"m.{suffix}", values))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 1, 1]])


@pytest.mark.parametrize("pair", [(1, 2), (200, 250)])
def test_two_levels_without_black_are_refused(tmp_path, pair):
    with pytest.raises(InputError, match=rf"two levels, {pair[0]} and {pair[1]}.*--label"):
        load_mask(saved(tmp_path / "m.png", np.array([pair], np.uint8)))
    assert load_mask(tmp_path / "m.png", label=pair[0]).tolist() == [[1, 0]]


@pytest.mark.parametrize("form", ["jpg", "webp", "tif", "jp2"])
def test_a_lossy_coder_leaves_no_halo(tmp_path, square, form):
    options = {
        "jpg": {"quality": 60},
        "webp": {"quality": 75},
        "tif": {"compression": "jpeg", "quality": 60},
        "jp2": {"irreversible": True, "quality_mode": "dB", "quality_layers": [30]},
    }[form]
    image = Image.fromarray(square * np.uint8(255))
    path = saved(tmp_path / f"m.{form}", image.convert("RGB"), **options)
    with Image.open(path) as stored:
        assert len(np.unique(np.asarray(stored))) > 2
    with pytest.warns(InputNotice, match=r"m\..*levels.*cut at half of 255"):
        mask = load_mask(path)
    assert (mask & square).sum() / (mask | square).sum() > 0.97


def test_a_lossy_mask_saved_again_without_loss_has_no_halo(tmp_path, square):
    """The format says nothing: a JPEG mask saved as PNG still has its ringing."""
    memory = io.BytesIO()
    Image.fromarray(square * np.uint8(255)).save(memory, "JPEG", quality=60)
    with pytest.warns(InputNotice, match="cut at half"):
        mask = load_mask(saved(tmp_path / "m.png", Image.open(memory)))
    assert (mask != square).mean() < 0.01


def test_smooth_edges_are_cut_at_half(tmp_path):
    disc = Image.new("L", (400, 400))
    yy, xx = np.mgrid[:400, :400]
    big = ((yy - 200) ** 2 + (xx - 200) ** 2 < 120**2).astype(np.uint8) * 255
    disc = Image.fromarray(big).resize((100, 100), Image.Resampling.BOX)
    with pytest.warns(InputNotice, match="cut at half of 255"):
        mask = load_mask(saved(tmp_path / "m.png", disc))
    assert abs(mask.mean() * 16e4 - np.pi * 120**2) < 1000


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16])
def test_probabilities_are_cut_at_half(tmp_path, dtype):
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[None].repeat(20, 0)
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    with pytest.warns(InputNotice, match="101 levels.*cut at half"):
        mask = load_mask(saved(tmp_path / "m.tif", (ramp * top).astype(dtype)))
    assert 49 <= mask[0].sum() <= 51


def test_numbers_that_are_no_probabilities_are_refused(tmp_path):
    for values in ([[-3.0, 0.5, 4.0]], [[0.0, np.nan, 1.0]]):
        with pytest.raises(InputError, match=r"m\.tif: it holds numbers from"):
            load_mask(saved(tmp_path / "m.tif", np.array(values, np.float32)))


def labels_with_border():
    labels = np.zeros((40, 60), np.uint8)
    labels[8:28, 5:30] = 255
    labels[10:26, 7:28] = 15
    return labels


@pytest.mark.parametrize("palette", [False, True])
def test_vocs_border_is_ignored(tmp_path, palette):
    labels = labels_with_border()
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(1, 256, 768, np.uint8).tobytes())
        colours = image.getpalette()
        image.putpalette([0, 0, 0, *colours[3:]])
    with pytest.warns(InputNotice, match="labels 15 and a border of 255, which is ignored"):
        marked = load_marked(saved(tmp_path / "m.png", image))
    np.testing.assert_array_equal(marked == 1, labels == 15)
    np.testing.assert_array_equal(marked == 255, labels == 255)
    with pytest.warns(InputNotice):
        mask = load_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(mask, labels == 15)


def test_vocs_colours_saved_as_rgb(tmp_path):
    labels = labels_with_border()
    colours = np.zeros((*labels.shape, 3), np.uint8)
    colours[labels == 15], colours[labels == 255] = (192, 128, 128), (224, 224, 192)
    with pytest.warns(InputNotice, match="1 colours and a border"):
        mask = load_mask(saved(tmp_path / "m.png", colours))
    np.testing.assert_array_equal(mask, labels == 15)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_named_and_one_can_be_chosen(tmp_path, dtype):
    labels = np.zeros((30, 40), dtype)
    labels[5:15, 5:15], labels[16:28, 20:35] = 3, 7
    path = saved(tmp_path / "m.png", labels)
    with pytest.warns(InputNotice, match="labels 3, 7: all are taken for the object; --label"):
        mask = load_mask(path)
    np.testing.assert_array_equal(mask, labels != 0)
    np.testing.assert_array_equal(load_mask(path, label=7), labels == 7)
    with pytest.raises(InputError, match="no pixel has label 4; it holds 0, 3, 7"):
        load_mask(path, label=4)


def test_a_palette_of_labels_and_one_of_two_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    with pytest.warns(InputNotice, match="labels 1, 2: all are taken"):
        assert load_mask(saved(tmp_path / "m.png", image)).tolist() == [[0, 1, 1]]
    assert load_mask(tmp_path / "m.png", label=2).tolist() == [[0, 0, 1]]
    image = Image.fromarray(np.array([[0, 1, 0]], np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])  # white first: the colour counts
    assert load_mask(saved(tmp_path / "m.png", image)).tolist() == [[1, 0, 1]]


def test_an_unsure_region_is_refused_with_what_was_seen(tmp_path):
    trimap = np.zeros((40, 40), np.uint8)
    trimap[8:32, 8:32], trimap[14:26, 14:26] = 128, 255
    seen = r"3 levels, 0 \(64.0%\), 128 \(27.0%\), 255 \(9.0%\).*--label"
    with pytest.raises(InputError, match=seen):
        load_mask(saved(tmp_path / "m.png", trimap))


def test_dark_noise_is_no_mask(tmp_path):
    noise = np.random.default_rng(0).integers(0, 60, (40, 40), dtype=np.uint8)
    with pytest.raises(InputError, match="none reaches half of 255"):
        load_mask(saved(tmp_path / "m.png", noise))


def test_one_transparent_pixel_does_not_turn_a_mask_into_a_cut_out(tmp_path, square):
    rgba = np.repeat(square[:, :, None] * np.uint8(255), 4, axis=2)
    rgba[:, :, 3] = 255
    rgba[0, 0, 3] = 0
    with pytest.warns(InputNotice, match="its colours decide"):
        mask = load_mask(saved(tmp_path / "m.png", rgba))
    np.testing.assert_array_equal(mask, square)
    rgba[:10, :, 3] = 0
    with pytest.raises(InputError, match="both its colours and its opacity"):
        load_mask(saved(tmp_path / "m.png", rgba))


def test_a_cut_outs_opacity_decides(tmp_path, square):
    photograph = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    photograph[:, :, 3] = square * 255
    mask = load_mask(saved(tmp_path / "m.png", photograph))
    np.testing.assert_array_equal(mask, square)
    soft = Image.fromarray(square * np.uint8(255)).filter(ImageFilter.GaussianBlur(2))
    photograph[:, :, 3] = np.asarray(soft)
    with pytest.warns(InputNotice, match="cut at half"):
        mask = load_mask(saved(tmp_path / "m.png", photograph))
    assert (mask != square).mean() < 0.02


@pytest.fixture(scope="module")
def photographs():
    """Return scikit-learn's two photographs by name."""
    datasets = pytest.importorskip("sklearn.datasets")
    return {n: Image.fromarray(datasets.load_sample_image(f"{n}.jpg")) for n in ("china", "flower")}


@pytest.mark.parametrize("side", [None, 256, 48])
def test_a_photograph_is_no_mask_in_any_form(tmp_path, photographs, side):
    for name, whole in photographs.items():
        photograph = whole.resize((side, side)) if side else whole
        forms = {
            "png": photograph,
            "jpg": photograph,
            "webp": photograph,
            "gif": photograph.quantize(256),
            "bmp": photograph.convert("L"),
            "tif": Image.fromarray(np.asarray(photograph.convert("L"), np.float32) / 255),
        }
        for form, image in forms.items():
            path = saved(tmp_path / f"{name}.{form}", image)
            with pytest.raises(InputError, match=f"mask .*{name}.*(picture|labels)"):
                load_mask(path)


def test_a_photographs_message_says_what_was_seen(tmp_path, photographs):
    path = saved(tmp_path / "m.png", photographs["china"])
    with pytest.raises(InputError, match=r"shades of several colours \(\d+% of its pixels"):
        load_mask(path)
    saved(path, photographs["china"].convert("L"))
    with pytest.raises(InputError, match=r"256 levels.*6\d% of its pixels are neither dark nor li"):
        load_mask(path)


@pytest.mark.parametrize("levels", [(0, 128), (0, 60), (16, 235)])
@pytest.mark.parametrize("form", ["jpg", "webp"])
def test_two_blurred_levels_are_parted_between_them(tmp_path, levels, form):
    """Taken for labels, the darker of 16 and 235 would be object; cut at 128, half of 128 is."""
    yy, xx = np.mgrid[:256, :256]
    mask = ((yy - 120) ** 2 + (xx - 130) ** 2 < 70**2).astype(np.uint8)
    grey = np.where(mask, *map(np.uint8, reversed(levels))).astype(np.uint8)
    path = saved(tmp_path / f"m.{form}", Image.fromarray(grey).convert("RGB"), quality=80)
    with pytest.warns(InputNotice, match="it is cut at"):
        found = load_mask(path)
    assert (found & mask).sum() / (found | mask).sum() > 0.97


def test_an_object_around_half_of_the_range_is_refused(tmp_path):
    """Half of it would be lost at half of the range."""
    values = np.zeros((48, 48), np.uint8)
    values[::2, 10:30] = np.random.default_rng(0).integers(100, 150, (24, 20))
    with pytest.raises(InputError, match="of what is not dark lies near half"):
        load_mask(saved(tmp_path / "m.png", values))


def test_a_lossy_unsure_region_is_refused(tmp_path):
    trimap = np.zeros((160, 160), np.uint8)
    trimap[29:131, 29:131], trimap[53:107, 53:107] = 128, 255
    with pytest.raises(InputError, match="an unsure region, blurred by a coder"):
        load_mask(saved(tmp_path / "m.jpg", trimap))


@pytest.mark.parametrize("numbers", [(21, 40, 63), (21, 120, 210)])
def test_labels_that_a_coder_blurred_are_refused(tmp_path, numbers):
    """Cut at half, the darker ones would be lost."""
    labels = np.zeros((200, 200), np.uint8)
    labels[51:149, 51:149], labels[63:91, 63:91], labels[103:141, 63:141] = numbers
    labels[46:50, 46:154] = 255
    with pytest.raises(InputError, match="labels, or an unsure region, blurred by a coder"):
        load_mask(saved(tmp_path / "m.jpg", labels))


def test_shades_of_one_colour_are_a_mask(tmp_path, square):
    colours = square[:, :, None] * np.array([230, 40, 90], np.uint8)
    with pytest.warns(InputNotice, match="it is cut at"):
        mask = load_mask(saved(tmp_path / "m.jpg", colours, quality=90, subsampling=0))
    assert (mask != square).mean() < 0.01


def test_probabilities_of_a_sharp_model_and_a_gentle_peak(tmp_path):
    yy, xx = np.mgrid[:96, :96] / 96
    distance = np.hypot(yy - 0.5, xx - 0.4)
    for probability in (
        1 / (1 + np.exp(40 * (distance - 0.25))),
        np.exp(-((distance / 0.25) ** 2)),
    ):
        path = saved(tmp_path / "m.png", (probability * 255).astype(np.uint8))
        with pytest.warns(InputNotice, match="cut at half"):
            mask = load_mask(path)
        assert ((probability > 0.5) != mask).mean() < 0.01


def test_a_narrow_mask_takes_no_longer_than_a_square_one(tmp_path):
    """Each row was once counted into 65,536 levels: hours for a file of 200 kilobytes."""
    plane = np.zeros((2_000_000, 1), np.uint8)
    plane[1000:2000] = 255
    Image.fromarray(plane).save(tmp_path / "m.png")
    start = time.process_time()
    assert load_mask(tmp_path / "m.png").sum() == 1000
    assert time.process_time() - start < 5  # row by row it takes many times that
