"""The ONNX files: valid, typed, whole where it matters, and the same every time."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest

from tests.export.conftest import random_model
from uino_deploy.bundle import Bundle
from uino_deploy.errors import BuildError
from uino_deploy.export.onnx_writer import check_model, write_piece
from uino_deploy.export.opsets import DEFAULT_OPSET
from uino_deploy.export.pieces import exportable_pieces
from uino_deploy.export.precision import parse_precision
from uino_deploy.kernels.identity import VERSION

CALLS = {
    "Correlation4d": 1,
    "ScanPrologue": 4,
    "SelectiveScan2d": 4,
    "ScanEpilogue": 4,
    "NormMlp": 2,
}
GRAPHS = ["encoder", "adapter", "support", "prompt", "decoder", "query"]


def load(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.path(f"{name}.onnx"), load_external_data=False)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_passes_the_full_check(bundle, name):
    check_model(bundle.path(f"{name}.onnx"))


@pytest.mark.parametrize("name", GRAPHS)
def test_edges_are_those_of_the_manifest(bundle, name):
    graph, piece = load(bundle, name).graph, bundle.piece(name)
    for values, edges in ((graph.input, piece.inputs), (graph.output, piece.outputs)):
        found = [
            (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        ]
        assert found == [(edge.name, edge.shape) for edge in edges]


def test_norms_stay_whole(bundle, model):
    depth, layers = model.config.encoder.depth, len(model.config.encoder.correlation_layers)
    count = operators(load(bundle, "encoder"))["LayerNormalization"]
    assert count == 2 * depth + layers + 1
    assert operators(load(bundle, "encoder"))["Softmax"] == depth
    for name in GRAPHS:
        found = operators(load(bundle, name))
        assert not {"ReduceVar", "BatchNormalization", "InstanceNormalization"} & set(found)


def test_no_shape_gymnastics(bundle):
    """TensorRT's parser trips over these; only the fold of shots needs a dimension's value."""
    for name in GRAPHS:
        found = operators(load(bundle, name))
        assert not {"OneHot", "Tile", "Expand", "NonZero", "Resize", "ScatterND", "Loop"} & set(
            found
        )
        assert found["Shape"] == (2 if name in ("prompt", "query") else 0)


def test_operators_carry_every_attribute_and_a_portable_function(bundle, model):
    for name in ("prompt", "query"):
        proto = load(bundle, name)
        nodes = [node for node in proto.graph.node if node.domain == "uino"]
        assert Counter(node.op_type for node in nodes) == CALLS
        for node in nodes:
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert given["plugin_namespace"] == b"uino"
            assert given["plugin_version"] == b"1"
            assert given["aot"] == 1
            if node.op_type == "Correlation4d":
                grid, pool = model.config.grid, model.config.prompt.pool
                assert (given["height"], given["width"], given["pool"]) == (grid, grid, pool)
        assert {function.name for function in proto.functions} == set(CALLS)
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        assert versions["uino"] == VERSION == 2


def test_the_query_shares_the_pieces_weights(bundle):
    locations = {
        entry.value
        for tensor in load(bundle, "query").graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {f"{name}.weights" for name in ("encoder", "adapter", "prompt", "decoder")}
    assert bundle.path("query.onnx").stat().st_size < 500_000


def test_nothing_of_the_exporting_machine_is_inside(bundle):
    here = [os.fsencode(Path.cwd()), os.fsencode(Path.home()), b"site-packages", b".py"]
    for path in bundle.root.iterdir():
        if path.suffix in (".onnx", ".json", ".safetensors"):
            data = path.read_bytes()
            assert not [text for text in here if text in data], path.name


def test_a_file_is_the_same_in_another_process(half, tmp_path):
    """Alone and with another seed of Python's hashes; `half` has it among all the pieces."""
    code = (
        "import pathlib, sys, torch\n"
        "from tests.export.conftest import random_model\n"
        "from uino_deploy.export.onnx_writer import write_piece\n"
        "from uino_deploy.export.pieces import exportable_pieces\n"
        "from uino_deploy.export.precision import parse_precision\n"
        "pieces = exportable_pieces(random_model(), parse_precision(['fp16']), 18)\n"
        "write_piece(pieces['prompt'], pathlib.Path(sys.argv[1]), 18)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment, cwd=root)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["prompt.onnx", "prompt.weights"]
    for file in files:
        assert file.read_bytes() == half.path(file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("name", "variant", "precision", "opset"),
    [
        ("prompt", "full", "bf16", 18),
        ("decoder", "full", "bf16", 18),
        ("adapter", "full", "bf16", 22),
        ("prompt", "cp4d", "fp16", 18),
        ("support", "comp", "fp16", 20),
    ],
)
def test_other_precisions_variants_and_opsets_are_valid(
    exported, name, variant, precision, opset, tmp_path
):
    if (variant, opset) == ("full", DEFAULT_OPSET):
        path = exported(precision).path(f"{name}.onnx")
    else:
        pieces = exportable_pieces(random_model(variant), parse_precision([precision]), opset)
        path = write_piece(pieces[name], tmp_path, opset)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    versions = {entry.domain: entry.version for entry in inferred.opset_import}
    assert versions[""] == opset
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    low = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    assert products
    convolutions = {types[n.output[0]] for n in products if n.op_type == "Conv"} - {0}
    if precision == "bf16" and opset < 22:
        assert convolutions <= {onnx.TensorProto.FLOAT}
    else:
        assert convolutions <= {low}
    assert low in {types[n.output[0]] for n in products if n.output[0] in types}


def test_a_broken_graph_is_refused(bundle, damaged):
    path = damaged / "support.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(BuildError, match=r"support\.onnx is not a valid ONNX model"):
        check_model(path)
