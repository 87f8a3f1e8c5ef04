"""ONNX Runtime runs what was requested, or the error says why not."""

import shutil
import sys

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from uino_deploy.bundle import Bundle, write_manifest
from uino_deploy.errors import BundleError, DependencyError, InputError
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.runtime.onnxruntime_providers import PROVIDERS


@pytest.fixture
def bundle(fake_bundle):
    return Bundle.open(fake_bundle)


@pytest.fixture
def copy(fake_bundle, tmp_path):
    return shutil.copytree(fake_bundle, tmp_path / "copy.uino")


def image(batch=1):
    return np.random.default_rng(0).normal(size=(batch, 3, 56, 56)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_piece_runs_on_named_arrays(bundle, batch):
    session = OnnxRuntimeBackend(threads=1).load(bundle, "encoder")
    assert session.piece is bundle.piece("encoder")
    outputs = session.run({"image": image(batch)})
    assert set(outputs) == {"early", "deep"}
    assert outputs["deep"].shape == (batch, 2, 16, 3)
    patch = image(batch)[0, :, :14, :14].mean((1, 2))
    np.testing.assert_allclose(outputs["early"][0, 0], patch, atol=1e-6)


def test_feeds_are_converted_and_need_not_be_contiguous(bundle):
    session = OnnxRuntimeBackend(threads=1).load(bundle, "encoder")
    straight = session.run({"image": image()})["early"]
    turned = np.asfortranarray(image()).astype(np.float64)
    np.testing.assert_array_equal(session.run({"image": turned})["early"], straight)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "takes"),
        ({"image": image(), "other": image()}, "takes"),
        ({"image": image()[0]}, "shape"),
        ({"image": image()[:, :, :42]}, r"\['batch', 3, 56, 56\], not \[1, 3, 42, 56\]"),
    ],
)
def test_feeds_that_do_not_fit(bundle, feeds, words):
    session = OnnxRuntimeBackend(threads=1).load(bundle, "encoder")
    with pytest.raises(InputError, match=words):
        session.run(feeds)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_reach_onnxruntime(bundle, monkeypatch, threads):
    seen = []
    original = onnxruntime.InferenceSession

    def spy(path, options, **kwargs):
        seen.append(options.intra_op_num_threads)
        return original(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    backend = OnnxRuntimeBackend(threads=threads)
    backend.load(bundle, "adapter")
    assert seen == [threads or 0]
    assert backend.describe()["threads"] == str(threads or "default")


def test_fewer_than_one_thread():
    with pytest.raises(InputError, match="0 threads"):
        OnnxRuntimeBackend(threads=0)


def test_providers_go_by_short_and_by_full_name():
    assert OnnxRuntimeBackend(["cpu"]).describe()["provider"] == "CPUExecutionProvider"
    assert OnnxRuntimeBackend(["CPUExecutionProvider"]).describe()["backend"] == "onnxruntime"


def test_an_unknown_provider_is_a_mistake_of_the_caller():
    with pytest.raises(InputError, match="unknown provider 'gpu'; choose from cpu, cuda"):
        OnnxRuntimeBackend(["gpu"])
    with pytest.raises(InputError, match="no provider"):
        OnnxRuntimeBackend([])


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_is_not_installed_is_a_missing_dependency(monkeypatch, provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DependencyError, match=f"has no {PROVIDERS[provider]}") as caught:
        OnnxRuntimeBackend([provider])
    assert caught.value.exit_code == 3


def test_a_provider_that_silently_fell_back_is_refused(bundle, monkeypatch):
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)

    class OnCpu(onnxruntime.InferenceSession):
        def __init__(self, path, options, **_asked):
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCpu)
    # An onnxruntime that tells no assignment refuses by itself, in other words.
    words = "could not start CUDAExecutionProvider|cannot load piece encoder with CUDA"
    with pytest.raises(DependencyError, match=words):
        OnnxRuntimeBackend(["cuda"]).load(bundle, "encoder")


def test_onnxruntime_itself_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[cpu\]"):
        OnnxRuntimeBackend()


def rewrite_encoder(copy, **changes):
    manifest = Bundle.open(copy).manifest
    encoder = msgspec.structs.replace(manifest.pieces["encoder"], **changes)
    pieces = {**manifest.pieces, "encoder": encoder}
    write_manifest(copy, msgspec.structs.replace(manifest, pieces=pieces))
    return Bundle.open(copy)


def test_bfloat16_on_the_cpu_is_refused_with_a_way_out(copy):
    bundle = rewrite_encoder(copy, precision="bf16")
    with pytest.raises(DependencyError, match=r"bfloat16.*OpenVINO") as caught:
        OnnxRuntimeBackend().load(bundle, "encoder")
    assert caught.value.exit_code == 3
    assert OnnxRuntimeBackend().load(bundle, "adapter")


def test_a_graph_that_is_not_what_the_manifest_says(copy, bundle):
    described = bundle.piece("encoder").outputs
    swapped = [msgspec.structs.replace(tensor, dtype="float16") for tensor in described]
    changed = rewrite_encoder(copy, outputs=swapped)
    with pytest.raises(BundleError, match=r"encoder\.onnx has outputs .*float32"):
        OnnxRuntimeBackend(threads=1).load(changed, "encoder")


@pytest.mark.parametrize("content", [b"no protobuf", b""], ids=["text", "empty"])
def test_a_graph_that_cannot_be_loaded(copy, content):
    manifest = Bundle.open(copy).manifest
    (copy / "encoder.onnx").write_bytes(content)
    write_manifest(copy, manifest)
    with pytest.raises(BundleError, match=r"encoder") as caught:
        OnnxRuntimeBackend(threads=1).load(Bundle.open(copy), "encoder")
    assert "\n" not in str(caught.value)


def move_weights_outside(copy, location):
    """Give the adapter a weight in a file, which doubles its input."""
    model = onnx.load(copy / "adapter.onnx")
    weight = onnx.TensorProto(name="big", dims=[1, 16, 3], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (copy / location).write_bytes(np.full((1, 16, 3), 2, np.float32).tobytes())
    model.graph.initializer.append(weight)
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["early", "big"], ["twice"]))
    model.graph.node[1].input[0] = "twice"
    (copy / "adapter.onnx").write_bytes(model.SerializeToString())


def test_external_weights_are_found_beside_the_graph(copy, bundle):
    move_weights_outside(copy, "adapter.weights")
    write_manifest(copy, bundle.manifest)
    early = np.ones((1, 16, 3), np.float32)
    session = OnnxRuntimeBackend(threads=1).load(Bundle.open(copy), "adapter")
    assert (session.run({"early": early})["embedding"] == 2).all()


@pytest.mark.parametrize("location", ["../outside.weights", "unlisted.weights", "/absolute"])
def test_external_weights_that_nobody_checked_are_refused(copy, bundle, tmp_path, location):
    if location.startswith("/"):
        location = str(tmp_path / "absolute")
    move_weights_outside(copy, location)
    write_manifest(copy, bundle.manifest)
    opened = Bundle.open(copy)
    opened.manifest.files.pop(location, None)
    with pytest.raises(BundleError, match="is not listed in its manifest"):
        OnnxRuntimeBackend(threads=1).load(opened, "adapter")
