"""What is taken from an exported model so that TensorRT uses the plugins, and what is refused."""

import onnx
import pytest

from uino_deploy.errors import BuildError
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.onnx_domain import DOMAIN, PLUGIN
from uino_deploy.kernels.plugins.graph import onnx_for_plugins, plugin_nodes


def model(operator="Correlation4d", leave_out=(), **changes):
    attributes = {"height": 7, "width": 7, "pool": 3, **PLUGIN, **changes}
    for name in leave_out:
        del attributes[name]
    node = onnx.helper.make_node(
        operator, ["query", "support", "weight"], ["volume"], domain=DOMAIN, **attributes
    )
    relu = onnx.helper.make_node("Relu", ["volume"], ["out"], name="relu")
    names = ("query", "support", "weight")
    inputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node, relu], "g", inputs, [output])
    made = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)],
        functions=[correlation.body(7, 7, 3, onnx.TensorProto.FLOAT, 18)],
    )
    other = made.functions.add()
    other.CopyFrom(made.functions[0])
    other.domain = "another"
    return made


def test_the_operators_bodies_are_dropped_and_nothing_else():
    original = model()
    before = original.SerializeToString()
    changed = onnx_for_plugins(original)
    assert original.SerializeToString() == before
    assert [f.domain for f in changed.functions] == ["another"]
    # All but the functions and the name that the node lacked are as they were.
    (name,) = plugin_nodes(changed)
    assert plugin_nodes(changed) == {name: "Correlation4d"}
    assert name
    changed.graph.node[0].ClearField("name")
    changed.functions.insert(0, original.functions[0])
    assert changed.SerializeToString() == before


def test_a_nodes_own_name_stays():
    original = model()
    original.graph.node[0].name = "correlate"
    original.graph.node[1].name = "Correlation4d_0"
    assert plugin_nodes(onnx_for_plugins(original)) == {"correlate": "Correlation4d"}
    original.graph.node[0].name = ""
    assert plugin_nodes(onnx_for_plugins(original)) == {"Correlation4d_0_": "Correlation4d"}


def test_a_misspelt_operator():
    with pytest.raises(BuildError, match="uino::Correlation4D has no plugin; there are"):
        onnx_for_plugins(model("Correlation4D"))


@pytest.mark.parametrize("name", ["height", "pool", "aot", "plugin_namespace", "plugin_version"])
def test_a_missing_attribute(name):
    with pytest.raises(BuildError, match=f"Correlation4d has no attribute {name}"):
        onnx_for_plugins(model(leave_out=[name]))


@pytest.mark.parametrize(("name", "value"), [("plugin_namespace", "uin0"), ("aot", 0)])
def test_a_wrong_name_of_the_plugin(name, value):
    with pytest.raises(BuildError, match=f"{name} is {value!r}, not "):
        onnx_for_plugins(model(**{name: value}))


def test_a_missing_input():
    original = model()
    original.graph.node[0].input.pop()
    with pytest.raises(BuildError, match="2 inputs, Correlation4d has 3"):
        onnx_for_plugins(original)
