"""Results are read only where they can be true, and compared only on the same pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.evaluation.report import compare, make_report
from uino_deploy.evaluation.results import read_runs, write_results

# Foreground: intersection, union; background: intersection, union; of 100 pixels each.
COUNTS = np.array([[10, 30, 70, 90], [0, 5, 95, 100], [50, 50, 50, 50]], np.int64)
RUN = Run("m", ("a", "b"), (0, 1, 0), COUNTS, "e" * 64, 1.0, "p" * 64)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "r.json"
    write_results(path, {}, {None: RUN, 1: RUN})
    return path


def test_what_is_written_is_read(written):
    runs = read_runs(written)
    assert runs.keys() == {None, 1}
    np.testing.assert_array_equal(runs[1].counts, COUNTS)
    assert replace(runs[1], counts=RUN.counts) != RUN  # runs are compared by identity
    assert (runs[1].images_sha256, runs[1].labels) == (RUN.images_sha256, RUN.labels)


@pytest.mark.parametrize(
    "counts",
    [
        [-10, 30, 70, 90],
        [31, 30, 70, 90],
        [10, 30, -70, 90],
        [10, 30, 91, 90],
        [10, 30, 70, 91],
        [1 << 62, 1 << 62, 0, 0],
        [1 << 70, 1 << 70, 0, 0],
    ],
)
def test_counts_that_no_image_has_are_refused(written, counts):
    document = json.loads(written.read_text())
    document["runs"][0]["counts"][1] = counts
    written.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"damaged|is not a results file"):
        read_runs(written)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run["labels"].pop(),
        lambda run: run["labels"].__setitem__(0, 2),
        lambda run: run["labels"].__setitem__(0, -1),
        lambda run: run.update(labels=[], counts=[]),
        lambda run: run.update(fold=None),
    ],
)
def test_other_damage_is_refused(written, damage):
    document = json.loads(written.read_text())
    damage(document["runs"][1])
    written.write_text(json.dumps(document))
    with pytest.raises(InputError):
        read_runs(written)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a": "\xff"}', b"1" * 5000, b""])
def test_bytes_that_are_no_results_are_refused(written, data):
    written.write_bytes(data)
    with pytest.raises(InputError, match="is not a results file") as refused:
        read_runs(written)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes_sha256": "f" * 64}, "not run on the same episodes"),
        ({"images_sha256": "q" * 64}, "other pictures of the same names"),
        ({"images_sha256": ""}, "do not say which pictures"),
        ({"labels": (0, 1), "counts": COUNTS[:2]}, "do not hold the episodes"),
        ({"labels": (1, 0, 0)}, "do not hold the episodes"),
        ({"classes": ("a", "c")}, "do not hold the episodes"),
    ],
)
def test_runs_of_other_episodes_or_pictures_are_not_compared(changes, words):
    assert compare(RUN, replace(RUN, name="n"))["difference"] == 0
    with pytest.raises(InputError, match=words):
        compare(RUN, replace(RUN, **changes))


def test_an_interval_without_width_is_no_certainty():
    one = replace(RUN, labels=(0, 1), counts=COUNTS[:2])
    few = make_report("demo", 1, 0, {None: one}, {None: one}).sentences
    assert all("[too few episodes]" in sentence for sentence in few)
    enough = make_report("demo", 1, 0, {None: RUN}, {}).sentences
    assert "too few" not in enough[0]


def test_a_limit_on_the_drop_does_not_pass_where_no_query_shows_its_class():
    """Every mIoU is 0 there, and none lies below another."""
    some, nothing = replace(RUN, absent=(1,)), replace(RUN, absent=(0, 1, 2))
    for run, passed in ((some, True), (nothing, False)):
        report = make_report("demo", 1, 0, {None: run}, {None: run}, max_miou_drop=1.0)
        assert report.document["passed"] is passed
        assert bool(report.failures) is not passed
