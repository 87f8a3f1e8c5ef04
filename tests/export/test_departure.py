"""The gate on a device: an error far from its forecast, and the node where a machine departs.

The machine is a stand-in: ONNX Runtime on a graph of which one node is falsified. No GPU's engine
has been bisected here.
"""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from onnx import helper, numpy_helper

from tests.export.test_engines import Spoilt
from uino_deploy.bundle import Decision
from uino_deploy.bundle.reference import inputs_of, load_example
from uino_deploy.export.engine_check import find_wrong
from uino_deploy.export.forecast.departure import first_departure
from uino_deploy.export.forecast.gate import departs


def cpu(model: onnx.ModelProto, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


class FalseMachine:
    """Runs models with the result of one node scaled."""

    def __init__(self, node: str, factor: float) -> None:
        self.node, self.factor, self.builds = node, factor, 0

    def __call__(self, model: onnx.ModelProto, feeds):
        self.builds += 1
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        for place, node in enumerate(wrong.graph.node):
            if node.name == self.node:
                result = node.output[0]
                node.output[0] = "true_result"
                scale = helper.make_node("Mul", ["true_result", "false_factor"], [result], "false")
                factor = np.array(self.factor, np.float32)
                wrong.graph.initializer.append(numpy_helper.from_array(factor, "false_factor"))
                wrong.graph.node.insert(place + 1, scale)
                break
        return cpu(wrong, feeds)


@pytest.fixture(scope="module")
def adapter(bundle):
    """A piece with its weights, and its inputs."""
    feeds = inputs_of(bundle.piece("adapter"), load_example(bundle))
    return onnx.load(bundle.path("adapter.onnx")), feeds


@pytest.mark.parametrize("place", [0, 1, -1])
def test_the_node_at_which_a_machine_departs_is_named(adapter, place):
    model, feeds = adapter
    heavy = {"MatMul", "Conv", "LayerNormalization"}
    names = [node.name for node in model.graph.node if node.op_type in heavy]
    machine = FalseMachine(names[place], 10.0)
    assert first_departure(model, feeds, machine, cpu, 1e-2) == names[place]
    assert machine.builds < 10  # of some sixty nodes


def test_a_machine_that_computes_rightly_is_not_accused(adapter):
    model, feeds = adapter
    assert first_departure(model, feeds, FalseMachine("no such node", 2.0), cpu, 1e-2) == ""


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (1e-3, ""),
        (3.9e-3, ""),
        (2.6e-4, ""),
        (5e-3, "suspect a miscompile"),
        (float("inf"), "suspect a miscompile"),
        (float("nan"), "suspect a miscompile"),
        (1e-6, "another type"),
    ],
)
def test_errors_far_from_the_forecast_are_suspicious(measured, words):
    assert words in departs(measured, 1e-3)
    assert bool(departs(measured, 1e-3)) == bool(words)


def test_a_build_is_held_to_the_forecast(bundle):
    """The query within float16's tolerance, but far from what was forecast."""
    decision = Decision(
        min_mask_iou=0.9,
        samples=["A"],
        half_flops=1.0,
        float32={},
        logits_error=1e-3,
        example_error=1e-3,
        mask_iou=1.0,
    )
    decided = dataclasses.replace(bundle, manifest=replace(bundle.manifest, decision=decision))
    example = load_example(bundle)
    for factor, words in ((1.001, ""), (1.02, "suspect a miscompile"), (1.0, "another type")):
        assert find_wrong(bundle, Spoilt(factor), "query", ["fp16"], example) == ""
        wrong = find_wrong(decided, Spoilt(factor), "query", ["fp16"], example)
        assert words in wrong
        assert bool(wrong) == bool(words)
