"""Floors: work counted by type on a layer that can be counted by hand, and what boards allow."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from uino_deploy.benchmarks.floors import Work, count_work, floor_ms, floors
from uino_deploy.benchmarks.ledger.boards import BOARDS
from uino_deploy.errors import InputError
from uino_deploy.export.calibration import Calibrated
from uino_deploy.export.formats import FORMATS
from uino_deploy.export.qdq import insert, linear_layers

BY_NAME = {board.name: board for board in BOARDS}
ORIN, THOR, L4 = (BY_NAME[name] for name in ("Jetson AGX Orin 64GB", "Jetson AGX Thor T5000", "L4"))


class OnePiece:
    """As much of a bundle as is counted."""

    def __init__(self, folder):
        self.root = folder

    def piece(self, name):
        return SimpleNamespace(model=f"{name}.onnx")

    def path(self, name):
        return self.root / name


@pytest.fixture(params=[None, "int8", "fp8"])
def encoder(request, tmp_path):
    """A bundle whose encoder is one linear layer of 8 by 6 on 5 tokens, and its precision."""
    weight = onnx.numpy_helper.from_array(np.ones((8, 6), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 6])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    if request.param:
        how = Calibrated(np.float32(0.1), None, 0.0)
        insert(model, dict.fromkeys(linear_layers(model), how), FORMATS[request.param])
    onnx.save(model, tmp_path / "encoder.onnx")
    return OnePiece(tmp_path), request.param


def test_work_is_counted_by_the_type_of_the_operands(encoder):
    bundle, precision = encoder
    work = count_work(bundle)
    kind = precision.upper() if precision else "FLOAT"
    assert work.operations == {kind: 2 * 5 * 8 * 6}
    assert work.weights[kind] >= 8 * 6
    assert work.bytes < (2 if precision else 5) * 8 * 6 + 40


def test_a_table_needs_quantised_encoders(encoder):
    bundle, precision = encoder
    if precision is None:
        with pytest.raises(InputError, match="no quantised encoder"):
            floors([bundle])
        return
    lines = floors([bundle]).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        *("fp32", "fp16", f"{precision}, rest fp32", f"{precision}, rest fp16")
    ]
    assert ("no fp8" in lines[-1]) == (precision == "fp8")


def test_a_floor_is_the_longer_of_computing_and_reading():
    computing = Work({"HALF": 1}, {"INT8": 10**12, "HALF": 10**12})
    assert floor_ms(computing, L4) == pytest.approx(1.5e3 / L4.half_tflops)
    reading = Work({"INT8": 10**9}, {"INT8": 1})
    assert floor_ms(reading, L4) == pytest.approx(1e3 / L4.bandwidth)
    eight = Work({"FP8": 1}, {"FP8": 10**12})
    assert floor_ms(eight, ORIN) is None
    assert floor_ms(eight, THOR) == pytest.approx(1e3 / (2 * THOR.half_tflops))
