"""The names of a graph's weight files, read from its bytes."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from uino_deploy.bundle.external_weights import external_weights
from uino_deploy.errors import BundleError


def tensor(name, location=None):
    if location is None:
        return numpy_helper.from_array(np.arange(300, dtype=np.float32), name)
    proto = onnx.TensorProto(name=name, dims=[3], data_type=onnx.TensorProto.FLOAT)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("offset", "4096"), ("location", location), ("length", "12")):
        proto.external_data.add(key=key, value=value)
    return proto


def constant(name, location):
    return helper.make_node("Constant", [], [name], value=tensor(name, location))


def graph_of(nodes, *initializers):
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])]
    return helper.make_graph(nodes, "g", [], outputs, list(initializers))


def save(tmp_path, graph, functions=()):
    model = helper.make_model(graph, functions=functions)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def test_a_graph_with_its_weights_inside(tmp_path):
    path = save(tmp_path, graph_of([helper.make_node("Add", ["a", "b"], ["y"])], tensor("a")))
    assert external_weights(path) == set()


def test_weights_are_found_wherever_a_tensor_can_be(tmp_path):
    branch = graph_of([constant("y", "branch.bin")], tensor("w", "../climbs.bin"))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    body = [constant("y", "function.bin")]
    function = helper.make_function("d", "f", [], ["y"], body, [helper.make_opsetid("", 18)])
    graph = graph_of([choice], tensor("a", "main.weights"), tensor("b", "main.weights"))
    values = onnx.SparseTensorProto(values=tensor("s", "sparse.bin"), dims=[9])
    graph.sparse_initializer.append(values)
    path = save(tmp_path, graph, [function])
    assert external_weights(path) == {
        "branch.bin",
        "../climbs.bin",
        "function.bin",
        "main.weights",
        "sparse.bin",
    }


def test_a_truncated_graph_is_refused(tmp_path):
    path = save(tmp_path, graph_of([], tensor("a")))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="not an ONNX file"):
        external_weights(path)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_names_or_a_refusal(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "m.onnx"
    path.write_bytes(data)
    with contextlib.suppress(BundleError):
        assert all(isinstance(name, str) for name in external_weights(path))


def varint(number):
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])


def field(number, body, tag=None):
    return (tag or varint(number << 3 | 2)) + varint(len(body)) + body


HIDDEN = field(1, b"location") + field(2, b"evil.bin")


@pytest.mark.parametrize(
    "tag",
    [
        bytes([13 << 3 | 2 | 128, 128, 128, 128, 0x10]),  # bit 32 set: C++ drops it
        bytes([13 << 3 | 2 | 128, 128, 128, 128, 0]),  # longer than it need be
        bytes([13 << 3 | 2 | 128, 128, 128, 128, 128, 0]),  # six bytes
    ],
)
def test_a_tag_that_readers_understand_differently_is_refused(tmp_path, tag):
    tensor_bytes = field(8, b"w") + field(13, HIDDEN, tag)
    (tmp_path / "m.onnx").write_bytes(field(7, field(5, tensor_bytes)))
    with pytest.raises(BundleError, match="can be checked"):
        external_weights(tmp_path / "m.onnx")


@pytest.mark.parametrize("where", ["model", "graph", "node", "attribute", "tensor", "external"])
def test_a_field_that_this_reader_does_not_know_is_refused(tmp_path, where):
    body = field(99, HIDDEN)
    for kind, number in (("external", 13), ("tensor", 5), ("attribute", 5), ("node", 1)):
        if where == kind:
            where, body = {"external": "tensor", "tensor": "attribute", "attribute": "node",
                           "node": "graph"}[kind], field(number, body)  # fmt: skip
    data = body if where == "model" else field(7, body)
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="unknown field"):
        external_weights(tmp_path / "m.onnx")


def test_weights_of_a_training_graph_are_found(tmp_path):
    graph = field(5, field(13, HIDDEN))
    (tmp_path / "m.onnx").write_bytes(field(20, field(1, graph)))
    assert external_weights(tmp_path / "m.onnx") == {"evil.bin"}


@pytest.mark.parametrize("data", [bytes([0x3A]) + b"\xff" * 9 + b"\x01", b"\x08" + b"\x80" * 10])
def test_lengths_and_numbers_without_sense_are_refused(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="can be checked"):
        external_weights(tmp_path / "m.onnx")


def test_a_node_that_reads_files_of_its_own_is_refused(tmp_path):
    node = helper.make_node("EPContext", [], ["y"], ep_cache_context="../evil.engine")
    with pytest.raises(BundleError, match="EPContext"):
        external_weights(save(tmp_path, graph_of([node])))
