"""The record's JSON: it round-trips, and other files are refused."""

import json
import os
from pathlib import Path

import pytest

from uino_deploy.benchmarks.record import load_record, save_record
from uino_deploy.errors import InputError, OutputExists


def test_round_trip(record, tmp_path):
    path = tmp_path / "record.json"
    save_record(path, record)
    assert load_record(path) == record
    assert json.loads(path.read_text())["schema"] == "1.0"


def test_nothing_is_overwritten_unasked(record, tmp_path):
    path = tmp_path / "record.json"
    save_record(path, record)
    with pytest.raises(OutputExists):
        save_record(path, record)
    save_record(path, record, force=True)


def test_a_newer_minor_schema_is_read(record, tmp_path):
    path = tmp_path / "record.json"
    save_record(path, record)
    document = json.loads(path.read_text()) | {"schema": "1.7", "something_new": 1}
    path.write_text(json.dumps(document))
    assert load_record(path).method == record.method


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": "2.0"}', "schema version 2.0"),
        ('{"schema": "1.0"}', "not a benchmark record"),
        ("[1]", "not a benchmark record"),
        ("\x00", "not a benchmark record"),
    ],
)
def test_what_is_no_record_is_refused(text, said, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_record(path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_record(tmp_path / "none.json")


def test_an_entry_that_failed_has_no_headline(entry_of):
    entry = entry_of()
    assert entry.main is not None
    entry.status = "failed"
    assert entry.main is None


def test_a_backend_that_ran_nothing_is_a_failure_and_a_peer_is_not(record_of, entry_of):
    entries = [entry_of(), entry_of("onnxruntime bf16"), entry_of("openvino fp32"), entry_of("p")]
    for entry, runner in zip(entries, ("onnxruntime", "onnxruntime", "openvino", "p"), strict=True):
        entry.runner = runner
        if entry is not entries[0]:
            entry.status, entry.reason = "refused", "not here"
    entries[3].peer = True
    assert record_of(entries).failures == ["openvino fp32: not here"]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no endless device")
def test_a_device_and_a_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((Path("/dev/zero"), "a device"), (tmp_path / "pipe", "a named pipe")):
        with pytest.raises(InputError, match=f"cannot be read: it is {kind}"):
            load_record(path)


@pytest.mark.parametrize("change", [{"rounds": []}, {"median": 0}, {"rounds": [0.1, -0.1]}])
def test_times_that_no_clock_gives_are_refused(record, tmp_path, change):
    path = tmp_path / "record.json"
    save_record(path, record)
    document = json.loads(path.read_text())
    document["entries"][0]["cases"][0]["timing"].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="a timing needs rounds"):
        load_record(path)


def test_a_record_of_what_did_not_run_does_not_pass(record_of, entry_of):
    assert record_of([]).failures == ["nothing was measured: there was no entry"]
    refused = entry_of("PyTorch eager fp32", peer=True)
    refused.status, refused.reason = "refused", "no torch"
    assert record_of([refused]).failures == ["nothing was measured: PyTorch eager fp32: no torch"]
    assert record_of([entry_of(), refused]).failures == []
