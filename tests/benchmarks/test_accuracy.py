"""The accuracy check: errors over budget fail, NaN fails, and nothing is left out."""

import numpy as np
import pytest

from uino_deploy.benchmarks.accuracy import case_accuracy, judge, judge_by_stored
from uino_deploy.benchmarks.record import MAIN, Case, PieceError

KEY = f"{MAIN}, query 0"


def outputs(error: float = 0.0, key: str = KEY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 8, 8)).astype(np.float32)
    noise = rng.normal(size=logits.shape).astype(np.float32)
    noise *= error * np.linalg.norm(logits) / np.linalg.norm(noise)
    found = logits + noise
    return {f"{key}, logits": found, f"{key}, masks": np.packbits(found > 0)}


def test_the_reference_itself_passes():
    found = judge(outputs(), outputs(), [], ["fp32"], trained=True)
    assert found.failures == []
    assert (found.photographs, found.logits_relative_l2, found.mask_iou) == (1, 0.0, 1.0)


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True)])
def test_the_budget_is_the_precisions_own(precision, passes):
    found = judge(outputs(0.02), outputs(), [], [precision], trained=False)
    assert found.logits_relative_l2 == pytest.approx(0.02, rel=1e-3)
    assert (found.failures == []) == passes
    # The coarsest precision of several pieces sets the budget.
    assert judge(outputs(0.02), outputs(), [], ["fp32", "fp16"], trained=False).failures == []


def test_masks_count_where_weights_are_trained():
    got = outputs()
    got[f"{KEY}, masks"] = ~got[f"{KEY}, masks"]
    assert "IoU" in judge(got, outputs(), [], ["fp32"], trained=True).failures[0]
    assert judge(got, outputs(), [], ["fp32"], trained=False).failures == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value):
    got = outputs()
    got[f"{KEY}, logits"][0, 0, 0] = value
    assert judge(got, outputs(), [], ["bf16"], trained=False).failures


def test_outputs_of_another_shape_fail():
    got = outputs()
    got[f"{KEY}, logits"] = got[f"{KEY}, logits"][:, :4]
    assert judge(got, outputs(), [], ["fp32"], trained=False).failures


def test_no_output_at_all_fails():
    assert judge({}, outputs(), [], ["fp32"], trained=False).failures


def test_every_case_counts():
    ten = f"{Case(classes=10)}, query 0"
    wanted = outputs() | outputs(key=ten)
    got = outputs() | outputs(0.1, key=ten)
    assert judge(got, wanted, [], ["fp32"], trained=False).failures
    assert case_accuracy(got, wanted, MAIN) == (0.0, 1.0)
    assert case_accuracy(got, wanted, Case(classes=10))[0] == pytest.approx(0.1, rel=1e-3)
    assert case_accuracy(outputs(), wanted, Case(classes=10)) is None


def piece(error: float, output: str = "logits") -> PieceError:
    return PieceError(piece="decoder", output=output, relative_l2=error, max_abs=0, allowed=1e-4)


def test_a_guilty_piece_is_named():
    (said,) = judge(outputs(), outputs(), [piece(1e-3)], ["fp32"], trained=False).failures
    assert said.startswith("decoder.logits differs by 1.00e-03")


def test_the_stored_example_judges_where_torch_is_not():
    assert judge_by_stored([piece(1e-5)], ["fp32"]).failures == []
    assert len(judge_by_stored([piece(1e-3)], ["fp32"]).failures) == 2
    assert judge_by_stored([piece(1e-5, "dense")], ["fp32"]).failures, "nothing was judged"
