"""The area under the ROC curve, and its place in the report."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from uino_deploy.evaluation.episodes import Run
from uino_deploy.evaluation.presence import area_under_roc, bootstrap_area
from uino_deploy.evaluation.report import make_report
from uino_deploy.evaluation.results import read_runs, write_results


def test_the_area_is_scikit_learns():
    rng = np.random.default_rng(0)
    present, absent = rng.integers(2, 9, 40) / 4, rng.integers(0, 7, 25) / 4  # with many ties
    truth = [1] * 40 + [0] * 25
    expected = roc_auc_score(truth, np.concatenate([present, absent]))
    assert area_under_roc(present, absent) == pytest.approx(expected)
    interval = bootstrap_area(present, absent)
    assert interval.low < expected < interval.high
    assert bootstrap_area(present + 9, absent) == bootstrap_area(present + 8, absent)


def test_the_report_says_how_well_present_and_absent_are_told_apart(tmp_path):
    counts = np.tile([5, 9, 80, 84], (4, 1))
    presence = ((0.4, 0.1), (-0.3, 0.9), (0.2, 0.5), (-0.1, 0.2))
    run = Run("m", ("a",), (0,) * 4, counts, "e", 1.0, "i", absent=(1, 3), presence=presence)
    report = make_report("folder", 1, 0, {None: run}, {})
    absent = report.document["absent"]
    assert (absent["presence_auc"], absent["predicted_iou_auc"]) == (1, 0.25)
    assert any("area under the ROC curve 1.000" in sentence for sentence in report.sentences)
    write_results(tmp_path / "r.json", report.document, {None: run})
    assert read_runs(tmp_path / "r.json")[None].presence == presence
    whole = Run("m", ("a",), (0,) * 4, counts, "e", 1.0, "i", presence=presence)
    assert "presence_auc" not in make_report("folder", 1, 0, {None: whole}, {}).document["absent"]
