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
