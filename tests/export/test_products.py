"""What an engine multiplies in, read from a plan and from the inspector, and what is refused."""

import json
import shutil

import pytest

from tests.export.conftest import reuse
from uino_deploy.bundle import Bundle
from uino_deploy.data.calibration import calibration_images
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.export import export_bundle, quantise
from uino_deploy.export.audit import check_quantised
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


def test_a_plan_tells_what_each_product_multiplies():
    lines = [
        product(["x8", "w8", "alpha"], ["q", "k", "v"]),
        product(["x8", "w"], ["between"]),
        product(["e", "f"], ["eight"]),
        product(["x", "w"], ["half_way", "q"]),
        product(["x8", "w8"], ["cast"], "runtime_fusion", "__myl_CastMulFc"),
        product(["x8", "w8"], ["fused"], "runtime_fusion", "__myl_FcMul"),
        product(["x8", "w8", "v"], ["scores", "mixed"], "function", "_gemm_mha_v2"),
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
        metadata = "\x1e".join(f"[ONNX Layer: {each}]" for each in nodes)
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
    check_quantised(piece, {"a": "INT8"}, {"INT8": 1, "FLOAT": 9})
    check_quantised(piece, {}, {"FLOAT": 9})
    for found in ({"FLOAT": 9}, {"INT8": 2}, {"FP8": 1}):
        with pytest.raises(CheckFailed, match="the parsed network"):
            check_quantised(piece, {"a": "INT8"}, found)


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


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
