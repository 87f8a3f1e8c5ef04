"""Scales and smoothings: measured on layers with known weaknesses, in both formats."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from uino_deploy.export.calibration import (
    Calibrated,
    Inputs,
    calibrate,
    calibrate_pair,
    weight_scale,
)
from uino_deploy.export.formats import FORMATS
from uino_deploy.export.qdq import insert, linear_layers

KINDS = ["int8", "fp8"]


def layer(outlier=1.0, seed=0):
    """Rows and a weight of a layer, with one channel of the rows that much larger."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(128, 32)).astype(np.float32)
    rows[:, 5] *= outlier
    weight = rng.normal(size=(32, 24)).astype(np.float32)
    return Inputs(rows, np.abs(rows).max(axis=0)), weight


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_onnxs(kind):
    """Halves, the ends of the range, beyond them, and fp8's subnormals."""
    values = np.array(
        [0.5, 1.5, 2.5, -126.5, 127.4, 300.0, -300.0, 447.0, 500.0, 2.0**-9, 2.0**-11]
    )
    values = np.concatenate([values, np.random.default_rng(0).normal(size=500) * 20])
    values = values.astype(np.float32)
    element = FORMATS[kind].element
    zero = onnx.numpy_helper.from_array(np.zeros((), FORMATS[kind].dtype), "zero")
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.75])
    edge = [TensorProto.FLOAT, [len(values)]]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "round",
        [helper.make_tensor_value_info("x", *edge)],
        [helper.make_tensor_value_info("y", *edge)],
        [scale, zero],
    )
    assert zero.data_type == element
    opsets = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    np.testing.assert_array_equal(FORMATS[kind].rounded(values, np.float32(0.75)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_computes_what_was_measured(kind):
    """A norm, a layer and its smoothing as a graph, against the simulation in numpy."""
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(128, 32)).astype(np.float32)
    gain = np.ones(32, np.float32)
    gain[5] = 60.0
    weight = rng.normal(size=(32, 24)).astype(np.float32)
    model = normed_layer(gain, weight)
    rows = run(with_output(model, "n"), tokens)[-1]
    inputs = Inputs(rows, np.abs(rows).max(axis=0))
    how = calibrate(inputs, weight, FORMATS[kind], foldable=True)
    (exact,) = run(model, tokens)
    insert(model, dict.fromkeys(linear_layers(model), how), FORMATS[kind])
    (got,) = run(model, tokens)
    factors = 1 if how.smoothing is None else how.smoothing
    smoothed = weight * np.reshape(factors, (-1, 1))
    rounded = FORMATS[kind].rounded(smoothed, weight_scale(smoothed, FORMATS[kind]))
    wanted = FORMATS[kind].rounded(rows / factors, how.scale) @ rounded
    size = np.linalg.norm(exact)
    # A value at the border of two steps may fall on either side after another order of sums.
    assert np.linalg.norm(got - wanted) / size < 1e-3
    assert np.linalg.norm(got - exact) / size == pytest.approx(how.error, rel=0.05)


def normed_layer(gain, weight):
    constants = {"g": gain, "b": np.zeros_like(gain), "w": weight}
    graph = helper.make_graph(
        [
            helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm"),
            helper.make_node("MatMul", ["n", "w"], ["y"], name="linear"),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["r", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["r", weight.shape[1]])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def test_norms_that_share_a_gain_keep_it():
    """The exporter writes equal constants once: folding into one norm must not change another."""
    rng = np.random.default_rng(3)
    constants = {
        "g": np.ones(32, np.float32),
        "b": np.zeros(32, np.float32),
        "w": rng.normal(size=(32, 32)).astype(np.float32),
        "v": rng.normal(size=(32, 32)).astype(np.float32),
    }
    nodes = []
    for index, (source, weight) in enumerate((("x", "w"), ("y0", "v"))):
        nodes += [
            helper.make_node(
                "LayerNormalization", [source, "g", "b"], [f"n{index}"], f"norm{index}"
            ),
            helper.make_node("MatMul", [f"n{index}", weight], [f"y{index}"], f"linear{index}"),
        ]
    edge = [TensorProto.FLOAT, ["r", 32]]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", *edge)],
        [helper.make_tensor_value_info("y1", *edge)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    tokens = rng.normal(size=(64, 32)).astype(np.float32)
    (wanted,) = run(model, tokens)
    smoothing = np.geomspace(0.5, 2.0, 32).astype(np.float32)
    how = Calibrated(np.float32(0.05), smoothing, 0.0)
    insert(model, dict.fromkeys(linear_layers(model), how), FORMATS["int8"])
    (got,) = run(model, tokens)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.05


def with_output(model, name):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def run(model, tokens):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": tokens})


def test_smoothing_is_for_outlying_channels():
    inputs, weight = layer(outlier=100.0)
    plain, folded = (calibrate(inputs, weight, FORMATS["int8"], may) for may in (False, True))
    assert plain.smoothing is None
    assert folded.smoothing is not None
    assert folded.smoothing.argmax() == 5
    assert folded.error < plain.error / 2


def test_a_rare_outlier_is_clipped():
    """One value of 300 among 4096 of about 1: covering it would leave three steps for the rest."""
    inputs, weight = layer()
    inputs.rows[0, 0] = 300.0
    weight[0] = 0.0  # which nothing downstream reads
    covering = inputs.rows.max() / FORMATS["int8"].top
    how = calibrate(
        Inputs(inputs.rows, np.abs(inputs.rows).max(axis=0)), weight, FORMATS["int8"], False
    )
    assert how.scale < covering / 5
    assert how.error < 0.05


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("fp8", 0.05)])
def test_a_pair_has_a_scale_each(kind, bound):
    rng = np.random.default_rng(2)
    left = rng.uniform(size=(2, 3, 16, 32)).astype(np.float32)
    right = 50 * rng.normal(size=(2, 3, 32, 8)).astype(np.float32)
    how = calibrate_pair(left, right, (1.0, float(np.abs(right).max())), FORMATS[kind])
    exact = left @ right
    got = FORMATS[kind].rounded(left, how.scales[0]) @ FORMATS[kind].rounded(right, how.scales[1])
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert how.error == pytest.approx(error)
    assert how.error < bound
    assert how.scales[1] > 20 * how.scales[0]


@pytest.mark.parametrize("kind", KINDS)
def test_dead_channels_and_dead_inputs_are_no_division_by_zero(kind):
    weight = np.zeros((32, 24), np.float32)
    inputs = Inputs(np.zeros((8, 32), np.float32), np.zeros(32, np.float32))
    how = calibrate(inputs, weight, FORMATS[kind], foldable=True)
    assert how.error == 0.0
    assert np.isfinite(how.scale)
    assert how.scale > 0
