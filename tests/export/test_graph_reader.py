"""The wire-format reader sees what the onnx package sees."""

import onnx
import pytest
from onnx import TensorProto, helper

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.external_weights import external_weights
from uino_deploy.errors import BuildError
from uino_deploy.export import audit
from uino_deploy.export.graph_reader import read_graph, without_functions
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.epilogue import onnx as epilogue
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.kernels.mlp import onnx as mlp
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.kernels.prologue import onnx as prologue
from uino_deploy.kernels.selective_scan import onnx as scan

PIECES = ("encoder", "adapter", "support", "prompt", "decoder", "query")


@pytest.mark.parametrize("name", PIECES)
def test_it_reads_what_onnx_reads(bundle, name):
    path = bundle.path(f"{name}.onnx")
    model = onnx.load(path, load_external_data=False)
    summary = read_graph(path)
    calls = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [(c.name, c.operator) for c in summary.calls] == [(n.name, n.op_type) for n in calls]
    for call, node in zip(summary.calls, calls, strict=True):
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
        assert call.attributes == texts
    assert summary.functions == {f.name for f in model.functions}
    external = {e.value for t in model.graph.initializer for e in t.external_data}
    assert external_weights(path) == {value for value in external if value.endswith(".weights")}
    assert summary.doubles == []


def test_bodies_are_left_out_and_nothing_else(bundle):
    path = bundle.path("prompt.onnx")
    model = onnx.load(path, load_external_data=False)
    assert len(model.functions) == 5
    del model.functions[:]
    assert onnx.ModelProto.FromString(without_functions(path)) == model


def double_constant():
    return helper.make_tensor("half", TensorProto.DOUBLE, [1], [0.5])


def test_float64_is_found_wherever_it_is(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], name="inner", value=double_constant())],
        "branch",
        [],
        [],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], name="up", to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["y"], ["z"], name="down", to=TensorProto.FLOAT),
        helper.make_node("If", ["q"], ["r"], name="if", then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [], [], initializer=[double_constant()])
    body = helper.make_function(
        DOMAIN,
        "F",
        ["a"],
        ["b"],
        [helper.make_node("Constant", [], ["b"], value=double_constant())],
        [helper.make_opsetid("", 18)],
    )
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(graph, functions=[body]), path)
    assert sorted(read_graph(path).doubles) == [
        "the cast up",
        "the constant half",
        "the constant half",
        "the constant half",
        "the constant half",
    ]


def test_negative_attributes_keep_their_sign(tmp_path):
    node = helper.make_node("Op", ["x"], ["y"], name="n", domain=DOMAIN, axis=-3, large=1 << 40)
    path = tmp_path / "negative.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), path)
    (call,) = read_graph(path).calls
    assert call.attributes == {"axis": -3, "large": 1 << 40}


@pytest.mark.parametrize("data", [b"\x3a\xff", b"\x3a\x7fx", b"\xff" * 30, b"\x0b\x00"])
def test_what_is_no_onnx_file_is_refused(tmp_path, data):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(BuildError, match=r"x\.onnx is not an ONNX file"):
        read_graph(path)


def test_every_cut_of_a_file_is_refused_or_read(bundle, tmp_path):
    """A file cut anywhere raises our error or, between two fields, reads; nothing else."""
    data = bundle.path("decoder.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    refused = 0
    for end in range(1, len(data), len(data) // 50):
        path.write_bytes(data[:end])
        try:
            read_graph(path)
        except BuildError:
            refused += 1
    assert refused > 40


def test_the_expected_attributes_are_the_schemas():
    expected = audit.operator_attributes(_tiny_config())
    assert expected["SelectiveScan2d"] == [PLUGIN] * 4
    assert [call["plane"] for call in expected["ScanEpilogue"]] == [0, 1, 0, 1]
    for schema in (correlation.SCHEMA, prologue.SCHEMA, scan.SCHEMA, epilogue.SCHEMA, mlp.SCHEMA):
        for call in expected.pop(schema.name):
            assert set(call) == set(schema.attributes)
    assert not expected


def _tiny_config():
    from uino_deploy.config import UinoConfig

    return UinoConfig.from_preset("tiny")


def test_a_stored_bundle_passes(bundle):
    opened = Bundle.open(bundle.root)
    for piece in opened.manifest.pieces.values():
        audit.check_graph(opened, piece)
