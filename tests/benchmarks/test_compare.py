"""Regressions are found, noise is not one, and unlike records are refused."""

import json

import msgspec
import pytest

from uino_deploy.benchmarks.compare import compare_records
from uino_deploy.benchmarks.record import Memory, save_record
from uino_deploy.cli import main
from uino_deploy.errors import CheckFailed, InputError


def test_the_same_record_passes(record):
    found = compare_records(record, record, 0.1)
    assert found.failures == []
    assert not any(c.regression or c.improvement for c in found.changes)
    assert {c.what for c in found.changes} >= {"encoder", "cold start", "steady memory"}


def test_a_planted_regression_is_caught(record, record_of, entry_of):
    slower = record_of([entry_of(scale=1.2)])
    found = compare_records(record, slower, 0.1)
    main = "classes 1, shots 1, batch 1"
    assert [c.what for c in found.changes if c.regression][:1] == [main]
    assert "1.20x" in found.failures[0]
    assert compare_records(slower, record, 0.1).failures == []
    assert any(c.improvement for c in compare_records(slower, record, 0.1).changes)


def test_within_the_margin_is_no_regression(record, record_of, entry_of):
    assert compare_records(record, record_of([entry_of(scale=1.09)]), 0.1).failures == []
    assert compare_records(record, record_of([entry_of(scale=1.09)]), 0.05).failures


def test_within_the_spread_is_no_regression(record, record_of, entry_of):
    noisy = entry_of(scale=1.5)
    for result in noisy.cases:
        # One of its rounds was as fast as the record before.
        result.timing = msgspec.structs.replace(
            result.timing, rounds=[result.timing.rounds[0] / 1.6, *result.timing.rounds[1:]]
        )
    noisy.stages = {}
    assert compare_records(record, record_of([noisy]), 0.1).failures == []


def test_more_memory_is_a_regression(record, record_of, entry_of):
    larger = entry_of()
    larger.memory = Memory(steady=120_000_000, peak=150_000_000, device=None)
    (failure,) = compare_records(record, record_of([larger]), 0.1).failures
    assert "steady memory" in failure


def test_an_entry_that_no_longer_passes_is_a_failure(record, record_of, entry_of):
    wrong = entry_of()
    wrong.status, wrong.reason = "failed", "the logits differ"
    (failure,) = compare_records(record, record_of([wrong]), 0.1).failures
    assert "the logits differ" in failure


def test_entries_of_one_record_only_are_named(record, record_of, entry_of):
    more = record_of([entry_of(), entry_of("PyTorch eager fp32", peer=True)])
    found = compare_records(record, more, 0.1)
    assert found.failures == []
    assert found.missing == ["PyTorch eager fp32, 112 px, 2 threads"]


def test_an_entry_that_has_gone_does_not_pass(record, record_of, entry_of):
    more = record_of([entry_of(), entry_of("PyTorch eager fp32", peer=True)])
    with pytest.raises(CheckFailed, match="not in the second: PyTorch eager fp32"):
        compare_records(more, record, 0.1)
    failed = entry_of("PyTorch eager fp32", peer=True)
    failed.status = "failed"
    assert not compare_records(record_of([entry_of(), failed]), record, 0.1).failures


def test_a_case_that_has_gone_does_not_pass(record, record_of, entry_of):
    less = entry_of()
    gone = less.cases.pop()
    with pytest.raises(CheckFailed, match="not in the second") as failure:
        compare_records(record, record_of([less]), 0.1)
    assert str(gone.case) in str(failure.value)


def test_nothing_to_compare_does_not_pass(record_of, entry_of):
    refused = entry_of()
    refused.status, refused.reason = "refused", "it is not installed"
    with pytest.raises(CheckFailed, match="no figure is in both records"):
        compare_records(record_of([refused]), record_of([entry_of()]), 0.1)


def test_an_entry_that_stands_twice_is_refused(record, record_of, entry_of):
    twice = record_of([entry_of(scale=50.0), entry_of()])
    for before, after in ((record, twice), (twice, record)):
        with pytest.raises(InputError, match=r"record has .* twice"):
            compare_records(before, after, 0.1)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("method", {"rounds": 7}),
        ("method", {"images": ["22"]}),
        ("machine", {"processor": "Another CPU"}),
        ("machine", {"power_mode": "15W"}),
        ("model", {"fingerprints": ["00"]}),
    ],
)
def test_unlike_records_are_refused(record, record_of, part, change):
    other = record_of()
    setattr(other, part, msgspec.structs.replace(getattr(other, part), **change))
    with pytest.raises(InputError, match=f"{part}s differ in {next(iter(change))}"):
        compare_records(record, other, 0.1)


def test_records_without_a_common_entry_are_refused(record, record_of, entry_of):
    with pytest.raises(InputError, match="no entry in common"):
        compare_records(record, record_of([entry_of("openvino bf16")]), 0.1)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_fails_on_a_regression(record, record_of, entry_of, tmp_path, capsys):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    save_record(before, record)
    save_record(after, record_of([entry_of(scale=2.0)]))
    assert run("compare", before, before) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "PASSED"
    assert run("compare", before, after) == 1
    said = capsys.readouterr().out
    assert "REGRESSION" in said
    assert said.splitlines()[-1].startswith("FAILED: ")
    assert run("compare", before, after, "--json") == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "FAILED"
    assert run("compare", before, after, "--margin", 150) == 0


def test_the_command_refuses_unlike_records(record, record_of, tmp_path, capsys):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    save_record(before, record)
    other = record_of()
    other.method = msgspec.structs.replace(other.method, rounds=9)
    save_record(after, other)
    assert run("compare", before, after) == 2
    assert "rounds" in capsys.readouterr().err
