"""A support file is read only as it was written, and only by the model that made it."""

import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from uino_deploy.bundle import Manifest, Preprocess, Provenance
from uino_deploy.bundle.presence import Calibration
from uino_deploy.bundle.support import Support, check_class_name
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError, OutputExists

MANIFEST = Manifest(
    model=UinoConfig.from_preset("tiny").to_dict(),
    fingerprint="f" * 64,
    preprocess=Preprocess(size=112),
    opset=18,
    pieces={},
    reference="reference.safetensors",
    provenance=Provenance(created_by="tests", versions={}),
)


def make_support(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "bottle",
        "shots": 2,
        "precision": "fp16",
        "model": "tiny full 112 px",
        "fingerprint": "f" * 64,
        "preprocess": MANIFEST.preprocess.fingerprint,
        "prototypes": rng.normal(size=(2, 8)).astype(np.float16),
        "deep": rng.normal(size=(2, 3, 16, 8)).astype(np.float16),
        "weight": rng.normal(size=(2, 16)).astype(np.float32),
        "sparse": rng.normal(size=(2, 4)).astype(np.float16),
    }
    return Support(**(fields | changes))


@pytest.mark.parametrize("absent", [(), ("deep", "weight"), ("deep", "weight", "sparse")])
def test_what_is_saved_is_loaded(tmp_path, absent):
    saved = make_support(**dict.fromkeys(absent))
    saved.save(tmp_path / "s.safetensors")
    loaded = Support.load(tmp_path / "s.safetensors")
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, array in saved.tensors.items():
        assert loaded.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.tensors[name], array)
    for name in ("name", "shots", "precision", "model", "fingerprint", "preprocess"):
        assert getattr(loaded, name) == getattr(saved, name)
    loaded.check(MANIFEST)


def test_a_calibration_is_kept_and_a_support_without_one_still_loads(tmp_path):
    line = Calibration(0.1 + 0.2, 1 / 3)
    make_support(calibration=line).save(tmp_path / "new")
    assert Support.load(tmp_path / "new").calibration == line
    make_support().save(tmp_path / "old")
    assert Support.load(tmp_path / "old").calibration is None
    for wrong in (Calibration(float("nan"), 1.0), Calibration(0.0, 0.0)):
        make_support(calibration=wrong).save(tmp_path / "wrong", force=True)
        with pytest.raises(InputError, match="its calibration is"):
            Support.load(tmp_path / "wrong")


def test_saving_is_repeatable_and_overwrites_only_by_force(tmp_path):
    support = make_support()
    support.save(tmp_path / "a")
    support.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(OutputExists):
        support.save(tmp_path / "a")
    make_support(name="cup").save(tmp_path / "a", force=True)
    assert Support.load(tmp_path / "a").name == "cup"


def test_another_models_support_is_refused_and_the_message_says_so(tmp_path):
    other = make_support(fingerprint="0" * 64, model="vitb14 full 518 px")
    with pytest.raises(InputError, match=r"'bottle' .*another model \(vitb14 full 518 px; .*tiny"):
        other.check(MANIFEST)
    with pytest.raises(InputError, match="same kind with other weights"):
        make_support(fingerprint="0" * 64).check(MANIFEST)
    with pytest.raises(InputError, match="another preprocessing"):
        make_support(preprocess="0" * 64).check(MANIFEST)


def test_a_missing_file_and_one_that_is_no_support(tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        Support.load(path)
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(InputError, match="cannot be read"):
        Support.load(path)
    save_file({"weights": np.zeros(3)}, path)
    with pytest.raises(InputError, match="not a support file"):
        Support.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        Support.load(tmp_path)


def rewrite(path, arrays=None, **metadata):
    with safe_open(path, framework="numpy") as file:
        strings = file.metadata() | metadata
    save_file({**load_file(path), **(arrays or {})}, path, strings)


@pytest.mark.parametrize(
    ("metadata", "arrays", "words"),
    [
        ({"format_version": "2.0"}, {}, "format version '2.0'"),
        ({"shots": "many"}, {}, "cannot be read"),
        ({"precision": "int3"}, {}, "cannot be read"),
        ({}, {"weight": np.zeros((2, 16), np.float32)}, "damaged"),
        ({}, {"weight": np.zeros(32, np.float32)}, "damaged"),
        ({}, {"surplus": np.zeros(3)}, "damaged"),
        ({"name": "../../evil"}, {}, "class name"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, metadata, arrays, words):
    path = tmp_path / "s.safetensors"
    make_support().save(path)
    rewrite(path, arrays, **metadata)
    with pytest.raises(InputError, match=words) as caught:
        Support.load(path)
    assert "\n" not in str(caught.value)


def test_one_changed_byte_is_found(tmp_path):
    path = tmp_path / "s.safetensors"
    make_support().save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Support.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    make_support().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read"):
        Support.load(path)


@pytest.mark.parametrize(
    "name", ["bottle", "Flasche groß", "瓶子", "a-b_c.d", "x" * 100, "漢" * 85]
)
def test_names_that_can_name_a_folder(name):
    check_class_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *["", " ", "..", ".hidden", "a/b", "a\\b", "a:b", "a\nb", "a\0b", "x" * 101, " a", "a*"],
        # As folders: 270 bytes, names that Windows cuts, and its devices.
        *["漢" * 90, "mug.", "mug. ", "CON", "nul", "com1", "Lpt9.old", "aux .x"],
    ],
)
def test_names_that_cannot(name):
    with pytest.raises(InputError, match="class name"):
        make_support(name=name)


NOT_A_NUMBER = np.full((2, 16), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deep": np.zeros((2, 3, 16, 8), np.float16)}, "deep is zero throughout"),
        ({"weight": np.zeros((2, 16), np.float32)}, "weight is zero throughout"),
        ({"prototypes": np.zeros((2, 8), np.float32)}, "prototypes is zero throughout"),
        ({"weight": NOT_A_NUMBER}, "weight holds numbers that are not finite"),
        ({"sparse": np.full((2, 4), np.inf, np.float16)}, "sparse holds numbers that are not"),
        ({"deep": np.ones((2, 3, 16, 8), np.int64)}, "deep is int64"),
        ({"prototypes": np.ones((2, 8))}, "prototypes is float64"),
        ({"shots": 7}, "it says 7 shots, deep holds 2"),
        ({"shots": 7, "deep": None}, "it says 7 shots, weight holds 2"),
        ({"shots": 0, "deep": None, "weight": None}, "it says 0 shots"),
        ({"shots": -1, "deep": None, "weight": None}, "it says -1 shots"),
    ],
)
def test_what_no_enrolment_gives_is_refused(tmp_path, changes, words):
    make_support(**changes).save(tmp_path / "s")
    with pytest.raises(InputError, match=words) as caught:
        Support.load(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_prompt_may_be_zero(tmp_path):
    make_support(sparse=np.zeros((2, 4), np.float16)).save(tmp_path / "s")
    assert not Support.load(tmp_path / "s").sparse.any()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "s.safetensors")
    with pytest.raises(
        InputError, match=r"support .*s\.safetensors cannot be read: it is a named pipe"
    ):
        Support.load(tmp_path / "s.safetensors")
