"""Both layouts of the engine inspector, and the engines that its report refuses.

No engine has been inspected here: that needs a GPU, with TensorRT-RTX too. The words come from
libnvinfer_lean of tensorrt-lean-cu13-libs 10.15.1, 10.16.1 and 11.4.0, which share the runtime's
sources with libnvinfer (tests/contract/test_words.py finds them there), and from engines' answers
that others have published:

- 10.16 has "Format/Datatype", 11.4 "Datatype" and "I/O Tensors"; all have "LayerType", "PluginV3",
  "CaskConvolution", "BFloat16" and "Row major linear FP16 format"; none has "PluginType".
- "Row major linear INT8 format (kLINEAR)", that with FP8 and that with UINT8, and "FP8UE8M0":
  the library of TensorRT-RTX 1.7.1 (`strings libtensorrt_rtx.so.1`).
- "Reformat" with "Row major linear FP16 format" under "Format/Datatype": the layers of a
  convolution network that pytorch/TensorRT documents. Regions of Myelin's ("kgen", "gemm") write
  "Half" and "Float" there.
- "N/A due to dynamic shapes" under "Format/Datatype": TensorRT 8.6 and 10.x with dynamic
  dimensions; several
  public projects met it. 11.4 says "Format not available due to dynamic shapes" of the
  format, and keeps the type.
"""

import json

import pytest

from uino_deploy.bundle import Edge, Piece
from uino_deploy.errors import BuildError, CheckFailed
from uino_deploy.export.audit import check_engine, check_network, check_plugins
from uino_deploy.export.graph_reader import Call
from uino_deploy.export.inspector import read_inspector


def layer_10(name, kind, dtype):
    """Write a layer as TensorRT 10 does: format and type in one text."""
    tensors = [{"Name": "t", "Location": "Device", "Dimensions": [1], "Format/Datatype": dtype}]
    return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": tensors}


def layer_11(name, kind, dtype):
    """Write a layer as TensorRT 11 does: the type apart."""
    format_ = "Row major linear FP32 format (kLINEAR)"
    tensors = [{"Name": "t", "Dimensions": [1], "Format": format_, "Datatype": dtype}]
    return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": tensors}


def answer_10(layers):
    return json.dumps({"Layers": layers, "Bindings": ["early", "embedding"]})


def answer_11(layers):
    edges = [{"Name": name, "IOMode": "Input"} for name in ("early", "embedding")]
    return json.dumps({"Layers": layers, "I/O Tensors": edges})


LAYOUTS = [(layer_10, answer_10), (layer_11, answer_11)]


@pytest.mark.parametrize(("layer", "answer"), LAYOUTS)
def test_both_layouts_say_the_same(layer, answer):
    layers = [
        layer("Reformatting CopyNode", "Reformat", "Half"),
        layer("node_conv", "CaskConvolution", "Half"),
        layer("__mye_gemm", "gemm", "Float"),
        layer("__mye_kgen", "kgen", "BFloat16"),
        layer("shape", "kgen", "Int32"),
        layer("node_correlation4d", "PluginV3", "Half"),
    ]
    found = read_inspector(answer(layers))
    assert found.layers == 6
    assert found.types == {"HALF": 2, "FLOAT": 1, "BF16": 1}
    assert found.plugins == ["node_correlation4d"]
    assert found.tensors == ["early", "embedding"]
    assert found.untyped == 0


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Row major linear FP16 format", "HALF"),
        ("Channel major FP32 format where channel % 4 == 0", "FLOAT"),
        ("Row major linear BF16 format", "BF16"),
        ("Row major linear INT8 format (kLINEAR)", "INT8"),
        ("Row major linear FP8 format (kLINEAR)", "FP8"),
        ("Float", "FLOAT"),
    ],
)
def test_older_spellings_of_types(spelling, name):
    found = read_inspector(answer_10([layer_10("x", "CaskGemmConvolution", spelling)]))
    assert found.types == {name: 1}


def test_unknown_types_are_not_guessed():
    others = ["N/A due to dynamic shapes", "Row major linear UINT8 format (kLINEAR)", "FP8UE8M0"]
    layers = [layer_10("x", "NoOp", "Half"), *(layer_10("y", "kgen", each) for each in others)]
    assert read_inspector(answer_10(layers)).types == {}


def test_layers_by_name_alone_are_counted_as_such():
    found = read_inspector(answer_10(["node_conv + node_relu", "node_of_cosine"]))
    assert (found.layers, found.untyped, found.types, found.plugins) == (2, 2, {}, [])


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"Layer": []}'])
def test_an_unknown_answer_is_an_error(text):
    with pytest.raises(BuildError, match="engine inspector"):
        read_inspector(text)


ADAPTER = Piece(
    name="adapter",
    model="adapter.onnx",
    precision="fp16",
    inputs=[Edge(name="early", shape=["batch", 4, 8], dtype="float16")],
    outputs=[Edge(name="embedding", shape=["batch", 8, 2, 2], dtype="float16")],
)


def engine(types, answer=answer_10):
    layers = [layer_10("x", "kgen", t) for t, count in types.items() for _ in range(count)]
    return read_inspector(answer(layers))


def test_the_asked_precision_passes():
    check_engine(ADAPTER, {"fp16"}, {"HALF": 90, "FLOAT": 10}, engine({"Half": 8, "Float": 4}))


def test_a_silent_downgrade_is_refused():
    with pytest.raises(CheckFailed, match=r"8% compute in HALF .* of the network's 90%"):
        check_engine(ADAPTER, {"fp16"}, {"HALF": 90, "FLOAT": 10}, engine({"Half": 1, "Float": 11}))


def test_an_engine_without_types_proves_nothing():
    with pytest.raises(CheckFailed, match="no layer's type"):
        check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, read_inspector(answer_10(["a", "b"])))


CALLS = [
    Call("node_correlation4d", "Correlation4d", {}),
    Call("node_selective_scan2d", "SelectiveScan2d", {}),
    Call("node_selective_scan2d_1", "SelectiveScan2d", {}),
]


def test_where_sizes_range_the_network_is_the_proof():
    unnamed = engine({"N/A due to dynamic shapes": 3})
    check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, unnamed, ranges=True)
    with pytest.raises(CheckFailed, match="no layer's type"):
        check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, unnamed)
    with pytest.raises(CheckFailed, match="changed the precision"):
        check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, engine({"Float": 3}), ranges=True)
    for layers in ([], ["a", "b"]):
        nothing = read_inspector(answer_10(layers))
        with pytest.raises(CheckFailed, match="no layer's type"):
            check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, nothing, ranges=True)


def test_the_network_says_which_operators_are_plugins():
    names = [call.name for call in CALLS]
    assert check_plugins(ADAPTER, CALLS, names) == {"Correlation4d": 1, "SelectiveScan2d": 2}
    with pytest.raises(CheckFailed, match=r"2 plugin layers for 3 calls .*1 of 2 calls of Selecti"):
        check_plugins(ADAPTER, CALLS, names[:2])
    with pytest.raises(CheckFailed, match="0 of 1 calls of Correlation4d"):
        check_plugins(ADAPTER, CALLS, [])


def test_an_engine_that_shows_no_plugin_passes():
    """Myelin's regions hide them, and no version names a plugin's type."""
    check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, engine({"Half": 3}))


def test_other_inputs_and_outputs_are_refused():
    def other(layers):
        return json.dumps({"Layers": layers, "Bindings": ["image", "embedding"]})

    with pytest.raises(CheckFailed, match="the engine's tensors are embedding, image"):
        check_engine(ADAPTER, {"fp16"}, {"HALF": 9}, engine({"Half": 3}, answer=other))


def test_the_bounds_of_a_network():
    # As measured: the prompts of `comp` in fp16 and of `full` in bf16 at opset 18.
    check_network(ADAPTER, {"fp16"}, {"HALF": 2, "FLOAT": 1})
    check_network(ADAPTER, {"bf16"}, {"BF16": 17, "FLOAT": 16})
    with pytest.raises(CheckFailed, match=r"59% are HALF \(41 FLOAT, 59 HALF\); at least 60%"):
        check_network(ADAPTER, {"fp16"}, {"HALF": 59, "FLOAT": 41})
    with pytest.raises(CheckFailed, match="0% are HALF"):
        check_network(ADAPTER, {"fp16"}, {})
    with pytest.raises(CheckFailed, match=r"99% are FLOAT .* at least 100%"):
        check_network(ADAPTER, {"fp32"}, {"FLOAT": 99, "HALF": 1})


def test_islands_excuse_float32_in_half_pieces_only():
    few = {"HALF": 1, "FLOAT": 9}
    check_network(ADAPTER, {"fp16"}, few, islands=True)
    with pytest.raises(CheckFailed, match="10% are HALF"):
        check_network(ADAPTER, {"fp16"}, few)
    with pytest.raises(CheckFailed, match="0% are HALF"):
        check_network(ADAPTER, {"fp16"}, {"FLOAT": 10}, islands=True)
    with pytest.raises(CheckFailed, match=r"90% are FLOAT .* at least 100%"):
        check_network(ADAPTER, {"fp32"}, few, islands=True)


def test_a_query_of_several_precisions_must_have_them_all():
    check_network(ADAPTER, {"fp32", "fp16"}, {"FLOAT": 37, "HALF": 90})
    with pytest.raises(CheckFailed, match="fp16 and fp32"):
        check_network(ADAPTER, {"fp32", "fp16"}, {"FLOAT": 127})
