"""Encode, enroll and predict on a bundle of hand-written pieces."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from uino_deploy.bundle import Bundle, Preprocess, write_manifest
from uino_deploy.errors import BundleError, CheckFailed, InputError
from uino_deploy.inputs import InputNotice
from uino_deploy.runtime import Predictor, Result, Support, label_map
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def predictor(fake_bundle):
    return Predictor.load(fake_bundle, threads=1)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


class Counting(OnnxRuntimeBackend):
    """A backend that counts loads and runs."""

    def __init__(self):
        super().__init__(threads=1)
        self.loaded, self.ran = [], []

    def load(self, bundle, piece):
        self.loaded.append(piece)
        session = super().load(bundle, piece)
        run = session.run
        session.run = lambda feeds: self.ran.append(piece) or run(feeds)
        return session


def test_the_enrolled_class_is_found_at_the_images_own_size(predictor, red_square):
    image, mask = red_square
    support = predictor.enroll([(image, mask)], name="red")
    for factor in (1, 3):
        large = image.repeat(factor, 0).repeat(factor, 1)
        result = predictor.predict(large, support)
        truth = mask.repeat(factor, 0).repeat(factor, 1)
        assert isinstance(result, Result)
        assert result.name == "red"
        assert result.mask.dtype == np.uint8
        assert result.mask.shape == truth.shape
        assert set(np.unique(result.mask)) == {0, 1}
        assert iou(result.mask, truth) > 0.9
        assert result.score == 0.5
        assert result.logits.shape == (16, 16)
        assert result.logits.dtype == np.float32


def test_arrays_and_files_are_the_same(predictor, red_square, red_files):
    by_array = predictor.enroll([red_square], name="red")
    by_file = predictor.enroll([red_files], name="red")
    for name, array in by_array.tensors.items():
        np.testing.assert_array_equal(array, by_file.tensors[name])
    result = predictor.predict(str(red_files[0]), by_file)
    np.testing.assert_array_equal(result.logits, predictor.predict(red_square[0], by_array).logits)


def test_a_support_survives_its_file(predictor, red_square, tmp_path):
    support = predictor.enroll([red_square, red_square], name="red")
    assert support.shots == 2
    assert support.deep.shape == (2, 2, 16, 3)
    support.save(tmp_path / "red.safetensors")
    again = Support.load(tmp_path / "red.safetensors")
    np.testing.assert_array_equal(
        predictor.predict(red_square[0], again).logits,
        predictor.predict(red_square[0], support).logits,
    )


def test_shots_of_several_sizes_are_one_class(predictor, red_square):
    image, mask = red_square
    both = predictor.enroll([(image, mask), (image[:, 10:], mask[:, 10:])], name="red")
    assert iou(predictor.predict(image, both).mask, mask) > 0.9


def test_several_images_share_a_pass_of_the_encoder(fake_bundle, red_square):
    backend = Counting()
    predictor = Predictor(Bundle.open(fake_bundle), backend)
    image, mask = red_square
    support = predictor.enroll([(image, mask)], "red")
    images = [image, image[::-1], np.zeros((9, 30, 3), np.uint8)]
    backend.ran.clear()
    together = predictor.encode_all(images)
    assert backend.ran == ["encoder", "adapter"]
    for encoded, alone in zip(together, images, strict=True):
        assert (encoded.height, encoded.width) == alone.shape[:2]
        expected = predictor.predict(alone, support)
        found = predictor.predict(encoded, support)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert found.presence == pytest.approx(expected.presence, abs=1e-5)


def test_several_classes_take_one_pass_of_the_encoder(fake_bundle, red_square):
    backend = Counting()
    predictor = Predictor(Bundle.open(fake_bundle), backend)
    image, mask = red_square
    assert backend.loaded == []
    supports = [
        predictor.enroll([(image, mask)], name="red", calibrated=False),
        predictor.enroll([(image, 1 - mask)], name="blue", calibrated=False),
    ]
    assert backend.loaded == ["encoder", "support"]
    backend.ran.clear()
    results = predictor.predict(image, supports)
    assert backend.ran == ["encoder", "adapter", "prompt", "decoder", "prompt", "decoder"]
    assert sorted(backend.loaded) == sorted(set(backend.loaded))
    assert [result.name for result in results] == ["red", "blue"]
    encoded = predictor.encode(image)
    backend.ran.clear()
    np.testing.assert_array_equal(predictor.predict(encoded, supports[1]).mask, results[1].mask)
    assert backend.ran == ["prompt", "decoder"]


def test_a_list_of_one_gives_a_list_of_one(predictor, red_square):
    support = predictor.enroll([red_square], name="red")
    assert [result.name for result in predictor.predict(red_square[0], [support])] == ["red"]
    assert predictor.predict(red_square[0], []) == []


def test_the_threshold_is_on_the_logits(predictor, red_square):
    support = predictor.enroll([red_square], name="red")
    sizes = [predictor.predict(red_square[0], support, t).mask.sum() for t in (-1e9, 0, 1e9)]
    assert sizes[0] == 60 * 80
    assert 0 < sizes[1] < sizes[0]
    assert sizes[2] == 0


def test_the_label_map_gives_each_pixel_to_the_highest_logit(predictor, red_square):
    image, mask = red_square
    red = predictor.enroll([(image, mask)], name="red")
    blue = predictor.enroll([(image, 1 - mask)], name="blue")
    low = predictor.predict(image, [red, blue])
    labels = label_map(low)
    assert labels.dtype == np.uint8
    assert iou(labels == 1, mask == 1) > 0.9
    assert iou(labels == 2, mask == 0) > 0.9
    everywhere = predictor.predict(image, [red, blue], threshold=-1e9)
    np.testing.assert_array_equal(label_map(everywhere) == 1, labels == 1)
    nowhere = predictor.predict(image, [red, blue], threshold=1e9)
    assert not label_map(nowhere).any()
    with pytest.raises(InputError, match="1 to 255"):
        label_map([])
    with pytest.raises(InputError, match="different sizes"):
        label_map([low[0], predictor.predict(image[:30], red)])


# --- bad input


def empty(image, mask):
    return image, np.zeros_like(mask)


def full(image, mask):
    return image, np.ones_like(mask)


def other_size(image, mask):
    return image, mask[1:]


def mask_with_channels(image, mask):
    return image, mask[:, :, None]


def grey_image(image, mask):
    return image[:, :, 0], mask


def float_image(image, mask):
    return image / 255, mask


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty, "the mask is empty"),
        (full, "covers the whole image"),
        (other_size, r"\(59, 80\), its image \(60, 80\)"),
        (mask_with_channels, r"\(60, 80, 1\)"),
        (grey_image, r"uint8 of shape \(60, 80\)"),
        (float_image, "float64"),
    ],
)
def test_a_bad_shot_is_named(predictor, red_square, spoil, words):
    with pytest.raises(InputError, match=f"shot 2.*{words}"):
        predictor.enroll([red_square, spoil(*red_square)], name="red")


def test_a_bad_shot_from_a_file_is_named_by_its_file(predictor, red_files, tmp_path):
    Image.new("L", (80, 60)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match=r"shot 1 \(red\.png\): the mask is empty"):
        predictor.enroll([(red_files[0], tmp_path / "black.png")], name="red")
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        predictor.enroll([(red_files[0], tmp_path / "gone.png")], name="red")


def test_no_shot_and_no_name(predictor, red_square):
    with pytest.raises(InputError, match="has no shot"):
        predictor.enroll([], name="red")
    with pytest.raises(InputError, match="class name"):
        predictor.enroll([red_square], name="a/b")


def test_a_bad_query(predictor, red_square, tmp_path):
    support = predictor.enroll([red_square], name="red")
    with pytest.raises(InputError, match="uint8 RGB"):
        predictor.predict(red_square[0][:, :, :2], support)
    with pytest.raises(InputError, match="uint8 RGB"):
        predictor.predict(np.zeros((0, 5, 3), np.uint8), support)
    with pytest.raises(InputError, match="does not exist"):
        predictor.predict(tmp_path / "gone.png", support)


def changed(fake_bundle, tmp_path, **sections):
    copy = shutil.copytree(fake_bundle, tmp_path / "copy.uino")
    write_manifest(copy, msgspec.structs.replace(Bundle.open(copy).manifest, **sections))
    return copy


def test_more_shots_than_the_bundle_was_exported_for(fake_bundle, red_square, tmp_path):
    predictor = Predictor.load(changed(fake_bundle, tmp_path, limits={"shots": 2}), threads=1)
    assert predictor.enroll([red_square] * 2, name="red").shots == 2
    with pytest.raises(InputError, match=r"3 shots.*at most 2.*--max-shots"):
        predictor.enroll([red_square] * 3, name="red")


def test_another_models_support_is_refused_before_any_work(
    predictor, fake_bundle, red_square, tmp_path
):
    support = predictor.enroll([red_square], name="red")
    backend = Counting()
    other = Predictor(Bundle.open(changed(fake_bundle, tmp_path, fingerprint="0" * 64)), backend)
    with pytest.raises(InputError, match="another model"):
        other.predict(red_square[0], support)
    assert backend.ran == []


def test_a_damaged_bundle_is_refused(fake_bundle, tmp_path):
    copy = shutil.copytree(fake_bundle, tmp_path / "copy.uino")
    with open(copy / "decoder.onnx", "r+b") as file:
        file.seek(40)
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"decoder\.onnx was changed"):
        Predictor.load(copy)


def test_a_preprocessing_of_another_version_is_refused(fake_bundle, tmp_path):
    lanczos = Preprocess(size=56, image_filter="lanczos")
    with pytest.raises(BundleError, match="preprocessing"):
        Predictor.load(changed(fake_bundle, tmp_path, preprocess=lanczos))


def test_an_unknown_backend(fake_bundle):
    with pytest.raises(InputError, match="unknown backend 'onnx'; choose from onnxruntime"):
        Predictor.load(fake_bundle, backend="onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail_loudly(predictor, red_square, value):
    support = predictor.enroll([red_square], name="red")
    support.prototypes[0, 0] = value
    with pytest.raises(CheckFailed, match=r"'red': logits .* not finite"):
        predictor.predict(red_square[0], support)


def test_a_bundle_runs_where_torch_triton_and_onnx_are_not_installed(fake_bundle, red_files):
    image, mask = map(str, red_files)
    code = f"""
import sys
for name in ("torch", "triton", "onnx", "onnxscript", "transformers", "matplotlib", "sklearn"):
    sys.modules[name] = None
from uino_deploy.runtime import Predictor
predictor = Predictor.load({str(fake_bundle)!r}, threads=1)
support = predictor.enroll([({image!r}, {mask!r})], name="red")
print(predictor.predict({image!r}, support).mask.sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert 1000 < int(done.stdout) < 1400


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_eight_threads_on_one_predictor_get_what_one_gets(fake_bundle, red_square, backend):
    pytest.importorskip(backend)
    image, mask = red_square
    predictor = Predictor.load(fake_bundle, backend)  # loaded by whichever thread is first
    supports = [
        Predictor.load(fake_bundle).enroll([(image, mask)], name) for name in ("red", "again")
    ]

    def work(shift):
        seen = np.roll(image, shift, axis=1)
        return [predictor.predict(seen, supports) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for shift, results in enumerate(found):
        wanted = predictor.predict(np.roll(image, shift, axis=1), supports)
        for several in results:
            for got, want in zip(several, wanted, strict=True):
                np.testing.assert_array_equal(got.logits, want.logits)
                np.testing.assert_array_equal(got.mask, want.mask)
                assert got.score == want.score


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf")])
def test_a_threshold_that_is_no_number_is_refused(predictor, red_square, threshold):
    image, mask = red_square
    support = predictor.enroll([(image, mask)], "red")
    with pytest.raises(InputError, match="threshold is"):
        predictor.predict(image, support, threshold)


@pytest.mark.parametrize("image", [b"\x89PNG", None, 3, [[0]]])
def test_what_is_no_image_is_told_what_would_be(predictor, image):
    with pytest.raises(InputError, match="give a file's path or uint8 RGB"):
        predictor.encode(image)


@pytest.fixture
def blue(red_square):
    return np.full_like(red_square[0], (20, 40, 200))


def test_an_absent_class_is_said_to_be_and_its_mask_is_empty(predictor, red_square, blue):
    pytest.importorskip("skimage")  # for the instances
    support = predictor.enroll([red_square], "red")
    there, gone = (predictor.predict(image, support) for image in (red_square[0], blue))
    assert there.present is True
    assert there.presence > 0.7
    assert gone.present is False
    assert gone.presence < 0.2
    assert not gone.mask.any()
    assert gone.instances.objects == ()
    marked = np.full((16, 16), 3, np.float32)  # a model that marks everything, everywhere
    predictor._decoded = lambda query, support: (marked, 0.9)
    assert not predictor.predict(blue, support).mask.any()
    kept = predictor.predict(blue, support, min_score=0)
    assert kept.present is True
    assert kept.mask.all()
    with pytest.raises(InputError, match="the least score is nan"):
        predictor.predict(blue, support, min_score=float("nan"))


def test_without_a_calibration_nothing_is_said(predictor, red_square, blue):
    support = predictor.enroll([red_square], "red", calibrated=False)
    result = predictor.predict(red_square[0], support)
    assert (result.presence, result.present) == (None, None)
    assert result.mask.any()


def test_shots_and_negatives_calibrate(predictor, red_square, blue):
    image, _ = red_square
    one, two = (predictor.enroll([red_square] * n, "red").calibration for n in (1, 2))
    assert one.middle == 0 < two.middle
    grey = np.full_like(image, 128)
    strict = predictor.enroll([red_square], "red", negatives=[blue, grey, grey]).calibration
    assert strict.middle > one.middle
    with pytest.warns(InputNotice, match="the negatives look as much like 'red'"):
        predictor.enroll([red_square], "red", negatives=[np.full_like(image, (220, 30, 20))])


def test_only_so_many_shots_are_looked_for(fake_bundle, red_square):
    backend = Counting()
    predictor = Predictor(Bundle.open(fake_bundle), backend)
    predictor.enroll([red_square] * 12, "red")
    assert backend.ran.count("decoder") == 8
    assert backend.ran.count("support") == 9


def test_every_backend_gives_the_same_presence(fake_bundle, red_square, blue):
    pytest.importorskip("openvino")
    answers = []
    for backend in ("onnxruntime", "openvino"):
        predictor = Predictor.load(fake_bundle, backend, threads=1)
        support = predictor.enroll([red_square] * 2, "red", negatives=[blue])
        found = [predictor.predict(image, support) for image in (red_square[0], blue)]
        answers.append([(each.present, pytest.approx(each.presence, abs=1e-4)) for each in found])
        assert [each.present for each in found] == [True, False]
    assert [one[1].expected for one in answers[0]] == [other[1] for other in answers[1]]
