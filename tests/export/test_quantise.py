"""int8: the encoder's linear layers, but for those that it hurts, and the same masks."""

import shutil

import numpy as np
import onnx
import pytest

from uino_deploy.bundle import Bundle
from uino_deploy.data.calibration import SCENES, calibration_images
from uino_deploy.errors import BuildError, InputError
from uino_deploy.export import export_bundle, exporter, quantise, verify_bundle
from uino_deploy.export.precision import parse_precision
from uino_deploy.images import preprocess_image
from uino_deploy.letters import draw_letter
from uino_deploy.pipeline import PIECES
from uino_deploy.runtime.backends import BackendOptions, open_backend

MIXED = {**dict.fromkeys(PIECES, "fp32"), "encoder": "int8"}


@pytest.fixture(scope="module")
def calibration():
    return [draw_letter(seed)[0] for seed in range(50, 54)]


def reuse(patch, bundle):
    """Let an export copy the float32 bundle's pieces in place of tracing the same ones again."""

    def copy(made, folder, _opset):
        for name in (f"{made.piece.name}.weights", f"{made.piece.name}.onnx"):
            shutil.copy(bundle.root / name, folder)
        return folder / name

    patch.setattr(exporter, "write_piece", copy)


@pytest.fixture(scope="module")
def int8(model, bundle, calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "int8.uino"
    with pytest.MonkeyPatch.context() as patch:
        reuse(patch, bundle)
        return export_bundle(model, path, precision=MIXED, calibration=calibration)


def test_weights_are_symmetric_int8_for_each_channel(int8, model):
    graph = onnx.load(int8.root / "encoder.onnx").graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    readers = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    weights = [n for n in readers if n.input[0] in tensors and tensors[n.input[0]].ndim == 2]
    depth = model.encoder.config.depth
    assert len(weights) == int8.piece("encoder").quantisation.layers == 4 * depth
    for node in weights:
        weight, scale, zero = (tensors[name] for name in node.input)
        assert weight.dtype == np.int8
        assert scale.shape == zero.shape == (weight.shape[1],)
        assert not zero.any()


def test_the_manifest_says_how(int8, bundle):
    piece = int8.piece("encoder")
    assert piece.precision == "int8"
    assert piece.quantisation.images == 4
    assert piece.quantisation.left_out == []
    assert Bundle.open(int8.root).piece("encoder") == piece
    assert {t.dtype for t in (*piece.inputs, *piece.outputs)} == {"float32"}
    sizes = [each.manifest.files["encoder.weights"].size for each in (int8, bundle)]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_passes_verification(int8, model, backend):
    pytest.importorskip(backend)
    report = verify_bundle(int8, open_backend(backend, BackendOptions(threads=1)), model)
    assert report.reason == ""
    encoder = [c for c in report.pieces if c.piece == "encoder"]
    assert all(1e-4 < c.relative_l2 < 0.1 for c in encoder)  # int8 was computed, and does no harm


@pytest.fixture
def encoder(bundle, tmp_path):
    """A copy of the float32 encoder to quantise."""
    for name in ("encoder.onnx", "encoder.weights"):
        shutil.copy(bundle.root / name, tmp_path)
    return tmp_path / "encoder.onnx"


@pytest.fixture
def inputs(model, calibration):
    return [preprocess_image(image, model.config.image_size)[None] for image in calibration[:2]]


def test_a_sensitive_layer_is_left_out(encoder, inputs, monkeypatch):
    errors = quantise.sensitivity(encoder, inputs[0])
    worst = max(errors, key=errors.get)
    monkeypatch.setattr(quantise, "SENSITIVE", errors[worst] * 0.999)
    told = quantise.quantise(encoder, inputs)
    assert told.left_out == [worst]
    assert told.layers == len(errors) - 1


def test_an_encoder_that_bears_no_int8_is_refused(encoder, inputs, monkeypatch):
    monkeypatch.setattr(quantise, "SENSITIVE", 0.0)
    with pytest.raises(BuildError, match="every layer"):
        quantise.quantise(encoder, inputs)


def test_int8_is_for_the_encoder():
    assert parse_precision(["bf16", "encoder=int8"]) == {
        **dict.fromkeys(PIECES, "bf16"),
        "encoder": "int8",
    }
    for value in ("int8", "decoder=int8"):
        with pytest.raises(InputError, match="int8 is for the encoder only"):
            parse_precision([value])


def test_int8_without_images_leaves_nothing_behind(model, bundle, tmp_path, monkeypatch):
    reuse(monkeypatch, bundle)
    with pytest.raises(InputError, match="calibration images"):
        export_bundle(model, tmp_path / "none.uino", precision=MIXED)
    assert not list(tmp_path.iterdir())


def test_the_images_are_photographs_and_scenes():
    images = calibration_images()
    assert len(images) == 10 + SCENES
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
    again = calibration_images()
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
