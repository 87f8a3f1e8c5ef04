"""What an engine multiplies in, read from a plan and from the inspector, and what is refused.

The words of plans are those of TensorRT-RTX 1.7.1: `PLAN_WORDS` are looked up in its library, and
`test_engines_compute_every_quantised_layer_in_8_bits` reads real plans, with int8 and fp8_e4m3.

No inspector's answer about 8 bits was seen. "Datatype" and "[ONNX Layer: " lie in the library of
TensorRT-RTX 1.7.1, "gemm" is the type of a layer in published answers of TensorRT 10.x, and public
projects describe "Metadata" there, with \\x1f between nodes. Not found in a real answer: "Int8" and
"FP8" as an input's type, and that 8-bit products are layers of type "gemm". An engine that says it
in other words is refused.
"""

import json
import mmap
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.export.conftest import reuse
from uino_deploy.bundle import Bundle
from uino_deploy.data.calibration import calibration_images
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.export import engines, export_bundle, quantise
from uino_deploy.export.audit import check_quantised
from uino_deploy.export.engine_job import Job, Outcome
from uino_deploy.export.engines import build_engines
from uino_deploy.export.graph_reader import read_graph
from uino_deploy.export.precision import parse_precision
from uino_deploy.export.products import check_products, read_layers, read_plan

RTX = "tensorrt-rtx"


def tensor(name, kind):
    return f'  tensor={{ alignment=128 dims={{ 1 64 }} name="{name}" offset=0 type={kind} }}'


def product(operands, nodes, kind="fully_connected", name='"fc"'):
    inputs = "input" if kind == "fully_connected" else "input_args"
    listed = " ".join(f'"{each}"' for each in operands)
    told = "".join(f"[ONNX Layer: {each}]" for each in nodes)
    return f'  {kind}={{ name={name} {inputs}={{{listed} }} stream=0 layers="{told}" }}'


def plan(tensors, products):
    """Write the part of a plan that is read, as TensorRT-RTX 1.7.1 does, between other bytes."""
    lines = ["header {", " version = 5", "}", "descriptors {"]
    lines += [tensor(*each) for each in tensors.items()]
    lines += ["}", "main {", " label bb1: ", *products, "}", "shape_main {", " label bb2: ", "}"]
    return b"vtrt\0\xff\xfe" + "\n".join(lines).encode() + b"\0\xff" * 20


TYPES = {"x8": "int8", "w8": "int8", "x": "float", "w": "float", "e": "fp8_e4m3", "f": "fp8_e4m3"}
TYPES |= {"u": "uint8", "s": "fp8_ue8m0"}
# What `read_plan` looks for, besides the types' names.
PLAN_WORDS = ["descriptors {", "shape_main {", "fully_connected", "runtime_fusion={ name="]
PLAN_WORDS += ["input_args={ ", "_gemm_mha_v2", "[ONNX Layer: "]


def test_a_plan_tells_what_each_product_multiplies():
    lines = [
        product(["x8", "w8", "alpha"], ["q", "k", "v"]),
        product(["x8", "w"], ["between"]),
        product(["e", "f"], ["eight"]),
        product(["x", "w"], ["half_way", "q"]),
        product(["x8", "w8"], ["cast"], "runtime_fusion", "__myl_CastMulFc"),
        product(["x8", "w8"], ["fused"], "runtime_fusion", "__myl_FcMul"),
        product(["x8", "w8", "x8"], ["scores", "mixed"], "function", "_gemm_mha_v2"),
        product(["x8", "w8", "x"], ["scores_1", "mixed_1"], "function", "_gemm_mha_v2"),
        product(["u", "u"], ["unsigned"]),
        product(["s", "s"], ["scales"]),
        product(["x8", "w8"], ["pointwise"], "function", "__myl_CastMul"),
    ]
    found = read_plan(plan(TYPES, lines))
    assert found == {
        **dict.fromkeys("qkv", "INT8"),
        "between": "FLOAT",
        "eight": "FP8",
        "half_way": "FLOAT",
        "cast": "FLOAT",
        "fused": "INT8",
        "scores": "INT8",
        "mixed": "INT8",
        **dict.fromkeys(["scores_1", "mixed_1", "unsigned", "scales"], "FLOAT"),
    }


def test_names_of_one_graph_are_not_those_of_another():
    first = plan({"a": "int8", "b": "int8"}, [product(["a", "b"], ["one"])])
    second = plan({"a": "float", "b": "float"}, [product(["a", "b"], ["two"])])
    assert read_plan(first + second) == {"one": "INT8", "two": "FLOAT"}


@pytest.mark.parametrize("data", [b"", b"vtrt", plan(TYPES, [])])
def test_a_plan_that_tells_nothing_proves_nothing(data):
    with pytest.raises(CheckFailed, match="cannot be checked"):
        read_plan(data)


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_the_inspector_tells_it_in_metadata(key):
    def layer(kind, types, *nodes):
        inputs = [{"Name": "t", key: each} for each in types]
        metadata = "\x1f".join(f"[ONNX Layer: {each}]" for each in nodes)
        return {"Name": "x", "LayerType": kind, "Inputs": inputs, "Metadata": metadata}

    layers = [
        layer("gemm", ["Int8", "Int8", "Float"], "a", "b"),
        layer("kgen", ["Int8"], "c"),  # dequantises
        layer("gemm", ["Float", "Float"], "c"),
        layer("gemm", ["FP8", "FP8"], "d"),
        "by name alone",
    ]
    found = read_layers(json.dumps({"Layers": layers}))
    assert found == {"a": "INT8", "b": "INT8", "c": "FLOAT", "d": "FP8"}


def test_every_planned_layer_must_be_found_in_its_type():
    planned = {"a": "INT8", "b": "INT8", "c": "INT8"}
    assert check_products("encoder", planned, {**planned, "other": "FLOAT"}) == {"INT8": 3}
    with pytest.raises(CheckFailed, match=r"1 of 3 quantised layers .* INT8 .*: b in FLOAT"):
        check_products("encoder", planned, {**planned, "b": "FLOAT"})
    with pytest.raises(CheckFailed, match="c in nothing known"):
        check_products("encoder", planned, {"a": "INT8", "b": "INT8"})
    with pytest.raises(CheckFailed, match="a in FP8"):
        check_products("encoder", planned, {**planned, "a": "FP8"})


def test_the_parsed_network_must_have_every_product(quantised):
    piece = quantised("int8").piece("encoder")
    check_quantised(piece, {"int8"}, {"a": "INT8"}, {"INT8": 1, "FLOAT": 9})
    check_quantised(piece, {"fp32"}, {}, {"FLOAT": 9})
    for precision in ("int8", "fp8"):
        with pytest.raises(CheckFailed, match=f"is {precision}, but none of its products"):
            check_quantised(piece, {precision, "fp32"}, {}, {"FLOAT": 9})
    for found in ({"FLOAT": 9}, {"INT8": 2}, {"FP8": 1}):
        with pytest.raises(CheckFailed, match="the parsed network"):
            check_quantised(piece, {"int8"}, {"a": "INT8"}, found)


LAYER = {"Name": "x", "LayerType": "gemm", "Metadata": "[ONNX Layer: node_MatMul_1]"}
UNKNOWN = {"Format/Datatype": "N/A due to dynamic shapes"}
FLOAT = {"Format/Datatype": "Float"}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([], "no layer's type"),
        (["by name alone"], "no layer's type"),
        ([LAYER], "no layer's type"),
        ([LAYER | {"Inputs": [UNKNOWN] * 2, "Outputs": [UNKNOWN]}], "no layer's type"),
        ([LAYER | {"Inputs": [FLOAT] * 2, "Outputs": [FLOAT]}], "not computed in INT8"),
        ([{**LAYER, "LayerType": "kgen", "Outputs": [{"Datatype": "Int8"}]}], "nothing known"),
    ],
)
@pytest.mark.parametrize("ranges", [False, True])
def test_an_answer_that_tells_nothing_passes_no_quantised_engine(quantised, layers, reason, ranges):
    """Also where sizes range, as `build --shapes` makes them."""
    made = quantised("int8")
    piece = made.piece("encoder")
    summary = read_graph(made.path(piece.model))
    shapes = {"image": ([1], [1], [2 if ranges else 1])}
    job = Job(backend="tensorrt", onnx="", plan="", arch="sm_89", shapes=shapes)
    outcome = Outcome(
        version="10.13.3.9",
        layers={"FLOAT": 9},
        matrix_layers={"INT8": len(summary.quantised), "FLOAT": 1},
        inspector=json.dumps({"Layers": layers, "Bindings": []}),
    )
    with pytest.raises(CheckFailed, match=reason):
        engines._finish(made, piece, job, summary, outcome, [])


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.mark.usefixtures("rtx")
def test_a_plans_words_are_the_librarys():
    (folder,) = find_spec("tensorrt_rtx_libs").submodule_search_locations
    with (Path(folder) / "libtensorrt_rtx.so.1").open("rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        missing = [word for word in PLAN_WORDS if library.find(word.encode()) < 0]
    assert missing == []


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("kind", "arch"),
    [
        ("int8", "sm_89"),
        ("fp8", "sm_120"),
        pytest.param("int8", "sm_120", marks=pytest.mark.slow),
        pytest.param("fp8", "sm_89", marks=pytest.mark.slow),
        pytest.param("int8", "sm_80", marks=pytest.mark.slow),
    ],
)
def test_engines_compute_every_quantised_layer_in_8_bits(quantised, tmp_path, kind, arch):
    made = Bundle.open(shutil.copytree(quantised(kind).root, tmp_path / "made.uino"))
    (info,) = build_engines(made, RTX, arch, pieces=["encoder"])
    layers = made.piece("encoder").quantisation.layers
    assert info.products == {kind.upper(): layers}
    assert info.matrix_layers[kind.upper()] == layers


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_joint_projection_is_what_the_builder_dequantises(model, bundle, tmp_path, monkeypatch):
    """Without the split, the command finds that product in floating point."""
    reuse(monkeypatch, bundle)
    monkeypatch.setattr(quantise, "split_projections", lambda _model: 0)
    chosen = parse_precision(["encoder=int8"])
    images = calibration_images()[:1]
    made = export_bundle(model, tmp_path / "x.uino", precision=chosen, calibration=images)
    depth = model.encoder.config.depth
    assert len(read_graph(made.path("encoder.onnx")).quantised) == 6 * depth
    with pytest.raises(CheckFailed, match=f"{depth} of {6 * depth} quantised layers"):
        build_engines(made, RTX, "sm_89", pieces=["encoder"])
    assert not Bundle.open(made.root).manifest.plans


@pytest.mark.parametrize("arch", ["sm_80", "sm_86"])
def test_fp8_needs_tensor_cores_for_it(quantised, arch):
    with pytest.raises(InputError, match=f"fp8, which {arch} does not multiply"):
        build_engines(quantised("fp8"), RTX, arch, pieces=["query"])
