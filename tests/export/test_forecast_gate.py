"""The gate on a device: an error far from its forecast. Its machine is ONNX Runtime, scaled."""

import dataclasses

import pytest
from msgspec.structs import replace

from tests.export.test_engines import Spoilt
from uino_deploy.bundle import Decision
from uino_deploy.bundle.reference import load_example
from uino_deploy.export.engine_check import find_wrong
from uino_deploy.export.forecast.gate import departs


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


def test_a_choice_of_float32_alone_has_no_forecast_to_depart_from():
    """The sums' own error is then judged by float32's tolerance, as in any float32 bundle."""
    assert departs(1e-6, 0.0) == ""


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
