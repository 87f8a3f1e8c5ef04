"""A repository for Triton: its files, its configurations, and the library as the server calls it.

`make triton-check` loads the same repositories into the server's own core.
"""

import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.conftest import fake_bundle, red_square, run
from tests.serving.triton.plans import with_plans
from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable
from uino_deploy.errors import BundleError, InputError, OutputExists
from uino_deploy.runtime import Predictor
from uino_deploy.serving.triton_repository import write_repository

__all__ = ["fake_bundle", "red_square", "run"]

MODELS = {"encoder", "support", "adapter", "prompt", "decoder", "library", "query", "segment"}


@pytest.fixture
def classes(fake_bundle, red_square, tmp_path):
    """Return a folder with the class `red`."""
    (tmp_path / "classes").mkdir()
    support = Predictor.load(fake_bundle).enroll([red_square], "red")
    support.save(tmp_path / "classes" / "red.safetensors")
    return tmp_path / "classes"


def text_of(folder, model):
    return (folder / model / "config.pbtxt").read_text("utf-8")


def test_every_piece_has_its_file_and_its_tensors(fake_bundle, classes, tmp_path):
    bundle = Bundle.open(fake_bundle)
    written = write_repository(bundle, classes, "onnxruntime", tmp_path / "models", instances=3)
    assert set(written.models) == MODELS == {path.name for path in (tmp_path / "models").iterdir()}
    for name in ("encoder", "support", "adapter", "prompt", "decoder"):
        piece, text = bundle.piece(name), text_of(tmp_path / "models", name)
        path = tmp_path / "models" / name / "1" / piece.model
        assert path.read_bytes() == (fake_bundle / piece.model).read_bytes()
        assert f'default_model_filename: "{piece.model}"' in text
        edges = re.findall(r'put \{\n +name: "(\w+)"\n +data_type: (\w+)\n +dims: \[ (.*) \]', text)
        expected = [
            (
                edge.name,
                "TYPE_FP32",
                ", ".join(str(d) if isinstance(d, int) else "-1" for d in edge.shape),
            )
            for edge in (*piece.inputs, *piece.outputs)
        ]
        assert edges == expected
        assert "kind: KIND_CPU\n  count: 3" in text
    # What each step gives is taken by a later one, or is an answer.
    segment = text_of(tmp_path / "models", "segment")
    steps = re.findall(r'model_name: "(\w+)"', segment)
    assert steps == ["library", "encoder", "adapter", "prompt", "decoder"]
    maps = re.findall(r'(in|out)put_map \{\n +key: "\w+"\n +value: "(\w+)"', segment)
    taken = {name for kind, name in maps if kind == "in"} - {"image", "name"}
    given = {name for kind, name in maps if kind == "out"}
    assert given - taken == {"logits", "iou"}
    assert taken <= given
    assert str(classes) in text_of(tmp_path / "models", "library")


def test_a_repository_is_replaced_only_by_force(fake_bundle, classes, tmp_path):
    bundle = Bundle.open(fake_bundle)
    write_repository(bundle, classes, "onnxruntime", tmp_path / "models")
    with pytest.raises(OutputExists):
        write_repository(bundle, classes, "onnxruntime", tmp_path / "models")
    write_repository(bundle, classes, "onnxruntime", tmp_path / "models", device="gpu", force=True)
    assert "KIND_GPU" in text_of(tmp_path / "models", "encoder")
    with pytest.raises(OutputExists):
        write_repository(bundle, classes, "onnxruntime", classes.parent, force=True)


@pytest.mark.skipif(not is_importable("openvino"), reason="openvino is not installed")
def test_openvinos_graphs_have_static_shapes_and_compute_the_same(fake_bundle, classes, tmp_path):
    import openvino

    bundle = Bundle.open(fake_bundle)
    write_repository(bundle, classes, "openvino", tmp_path / "models", shots=2)
    assert "dims: [ 1, 2, 2, 16, 3 ]" in text_of(tmp_path / "models", "prompt")
    assert "-1" not in text_of(tmp_path / "models", "prompt")
    core = openvino.Core()
    random = np.random.default_rng(0)
    for name in ("encoder", "prompt", "decoder"):
        path = tmp_path / "models" / name / "1" / "model.xml"
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        feeds = {
            each.any_name: random.random(tuple(each.shape), dtype=np.float32)
            for each in compiled.inputs
        }
        made = compiled(feeds)
        expected = Predictor.load(fake_bundle)._session(name).run(feeds)
        for key, array in expected.items():
            np.testing.assert_allclose(made[key], array, rtol=1e-4, atol=1e-5)


def test_plans_are_taken_with_their_shapes_and_graphs(fake_bundle, classes, tmp_path):
    shapes = {"encoder": {"image": ([1, 3, 56, 56], [4, 3, 56, 56], [8, 3, 56, 56])}}
    bundle = with_plans(fake_bundle, tmp_path / "b.uino", shapes=shapes)
    written = write_repository(bundle, classes, "tensorrt", tmp_path / "m", cuda_graphs=True)
    text = text_of(tmp_path / "m", "encoder")
    assert "KIND_GPU" in text
    assert 'key: "image"\n        value {\n          dim: [ 4, 3, 56, 56 ]' in text
    assert "dims: [ 4, 3, 56, 56 ]\n      random_data: true" in text
    plan = tmp_path / "m" / "encoder" / "1" / "model.plan"
    assert plan.read_bytes() == (fake_bundle / "encoder.onnx").read_bytes()
    assert any("TensorRT 10.9.0 on sm_90" in note for note in written.notes)
    assert any("no plugin library" in note for note in written.notes)


def test_what_triton_cannot_run_is_refused(fake_bundle, classes, tmp_path):
    plain, target = Bundle.open(fake_bundle), tmp_path / "m"
    with pytest.raises(BundleError, match=r"no TensorRT plan of encoder.*build .*tensorrt"):
        write_repository(plain, classes, "tensorrt", target)
    with pytest.raises(InputError, match="does not run on a CPU"):
        write_repository(plain, classes, "tensorrt", target, device="cpu")
    with pytest.raises(InputError, match="does not run on a GPU"):
        write_repository(plain, classes, "openvino", target, device="gpu")
    with pytest.raises(InputError, match="no CUDA graphs"):
        write_repository(plain, classes, "onnxruntime", target, cuda_graphs=True)
    two = with_plans(fake_bundle, tmp_path / "two.uino", ("sm_89", "sm_90"))
    with pytest.raises(InputError, match="sm_89, sm_90; choose with --arch"):
        write_repository(two, classes, "tensorrt", target)
    write_repository(two, classes, "tensorrt", target, arch="sm_89")
    python = with_plans(fake_bundle, tmp_path / "python.uino", route="ipluginv3")
    with pytest.raises(BundleError, match="plugins in Python"):
        write_repository(python, classes, "tensorrt", tmp_path / "n")


class Answered:
    """An error as the server gives it: pb_utils.TritonError of the Python backend, server 2.51.

    The codes are those of TRITONSERVER_errorcode_enum in the server's tritonserver.h; its HTTP
    front answers them as 404 and 400, which `make triton-check` sees.
    """

    NOT_FOUND, INVALID_ARG = 2, 3

    def __init__(self, message, code):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


@pytest.fixture
def library(fake_bundle, classes, tmp_path, monkeypatch):
    """Return a function that asks the library of a repository as the server does.

    The names are those of the module triton_python_backend_utils, which the Python backend of
    server 2.51 puts before a model; `model_config` is its JSON of the server's ModelConfig
    (model_config.proto), cut to the fields that the library reads.
    """
    server = SimpleNamespace(
        TritonError=Answered,
        Tensor=lambda name, array: SimpleNamespace(name=name, array=array),
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(
            tensors=output_tensors, error=error
        ),
        get_input_tensor_by_name=lambda request, name: request[name],
        triton_string_to_numpy={"TYPE_FP32": np.float32}.get,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    write_repository(Bundle.open(fake_bundle), classes, "onnxruntime", tmp_path / "models")
    path = tmp_path / "models" / "library" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("library_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = text_of(tmp_path / "models", "library")
    pairs = re.findall(r'key: "(\w+)"\n +value \{\n +string_value: "(.*)"', text)
    outputs = re.findall(r'output \{\n +name: "(\w+)"\n +data_type: (\w+)', text)
    config = {
        "parameters": {key: {"string_value": value} for key, value in pairs},
        "output": [{"name": name, "data_type": kind} for name, kind in outputs],
    }
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})

    def ask(name):
        text = np.array([name.encode()], dtype=object)
        (answer,) = model.execute([{"name": SimpleNamespace(as_numpy=lambda: text)}])
        return answer

    return ask


def test_the_library_gives_a_class_as_a_query_takes_it(library, fake_bundle, classes, red_square):
    support = Predictor.load(fake_bundle).enroll([red_square], "red")
    found = {each.name: each.array for each in library("red").tensors}
    assert found.keys() == support.features.keys()
    for name, array in support.features.items():
        np.testing.assert_array_equal(found[name], array)
    assert library("red").tensors[0].array is not None
    # A class that appears is seen, and one that changes is read again.
    two = Predictor.load(fake_bundle).enroll([red_square, red_square], "red")
    two.save(classes / "red.safetensors", force=True)
    assert len({each.name: each.array for each in library("red").tensors}["support_deep"][0]) == 2


@pytest.mark.parametrize("name", ["blue", "../red", "", ".", "red.safetensors", "a\0b"])
def test_an_unknown_class_is_not_found(library, name):
    error = library(name).error
    assert error.code() == Answered.NOT_FOUND
    assert error.message() == f"no class {name!r}; enrolled: red"


def test_a_class_that_cannot_be_used_says_why(library, classes, tmp_path, red_square):
    from tests.runtime.conftest import write_fake_bundle

    data = (classes / "red.safetensors").read_bytes()
    other = Predictor.load(write_fake_bundle(tmp_path / "other.uino", weights="1" * 64))
    other.enroll([red_square], "other").save(classes / "other.safetensors")
    (classes / "copy.safetensors").write_bytes(data)
    (classes / "short.safetensors").write_bytes(data[:-5])
    (classes / "flipped.safetensors").write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    (classes / "text.safetensors").write_bytes(b"text")
    told = {
        "other": "another model made it",
        "copy": "holds a class named 'red'",
        "short": "damaged",
        "flipped": "damaged",
        "text": "damaged",
    }
    for name, why in told.items():
        error = library(name).error
        assert error.code() == Answered.INVALID_ARG
        assert why in error.message(), name
    assert library("red").error is None


def test_the_command_prints_how_to_start_the_server(run, fake_bundle, classes, tmp_path):
    options = ["--classes", classes, "--backend", "onnxruntime", "-o", tmp_path / "models"]
    code, out, err = run("triton-repository", fake_bundle, *options)
    assert (code, err) == (0, "")
    assert f"tritonserver --model-repository={tmp_path / 'models'}" in out
    code, out, err = run("triton-repository", fake_bundle, *options)
    assert code == 2
    assert err.count("\n") == 1
