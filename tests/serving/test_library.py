"""The folder of classes: seen by every process, whole or not at all."""

import os

import pytest

from uino_deploy.runtime import Predictor
from uino_deploy.serving.library import Library
from uino_deploy.serving.refusals import Refused


@pytest.fixture
def support(fake_bundle, red_square):
    return Predictor.load(fake_bundle).enroll([red_square], "red")


@pytest.fixture
def library(fake_bundle, tmp_path):
    return Library(tmp_path / "classes", Predictor.load(fake_bundle).bundle.manifest)


def test_a_class_is_read_once_and_again_when_its_file_changes(library, support):
    support.save(library.folder / "red.safetensors")
    first = library.read("red")
    assert library.read("red") is first
    support.save(library.folder / "red.safetensors", force=True)
    assert library.read("red") is not first
    assert library.names() == ["red"]
    os.remove(library.folder / "red.safetensors")
    with pytest.raises(Refused, match="enrolled: none"):
        library.read("red")


def test_what_is_kept_is_bounded(library, fake_bundle, red_square, monkeypatch):
    predictor = Predictor.load(fake_bundle)
    for name in ("a", "b", "c"):
        predictor.enroll([red_square], name).save(library.folder / f"{name}.safetensors")
    size = (library.folder / "a.safetensors").stat().st_size
    monkeypatch.setattr("uino_deploy.serving.library.KEPT_BYTES", 2 * size)
    kept = library.read("a")
    library.read("b")
    assert library.read("a") is kept
    library.read("c")
    assert library.read("a") is kept
    assert len(library._kept) == 2


def test_another_models_class_is_refused(library, tmp_path, red_square):
    from tests.runtime.conftest import write_fake_bundle

    other = Predictor.load(write_fake_bundle(tmp_path / "other.uino", weights="1" * 64))
    other.enroll([red_square], "red").save(library.folder / "red.safetensors")
    with pytest.raises(Refused, match="made by another model") as refused:
        library.read("red")
    assert refused.value.status == 409


def test_a_name_has_one_file_in_any_unicode_form(library, fake_bundle, red_square):
    composed, apart = "caf\u00e9", "cafe\u0301"
    support = Predictor.load(fake_bundle).enroll([red_square], composed)
    support.save(library.path(apart))
    assert library.read(apart) is library.read(composed)
    library.remove(apart)
    assert library.names() == []


def test_a_required_signature_is_required_of_classes(fake_bundle, tmp_path, support):
    pytest.importorskip("cryptography")
    from uino_deploy.bundle.sign import new_key_pair

    new_key_pair(tmp_path / "fleet.pem")
    public = next(path for path in tmp_path.glob("*.pem") if b"PUBLIC" in path.read_bytes())
    manifest = Predictor.load(fake_bundle).bundle.manifest
    library = Library(tmp_path / "classes", manifest, public)
    support.save(library.folder / "red.safetensors")
    with pytest.raises(Refused, match="is not signed"):
        library.read("red")
