"""Groups run in processes of their own: a crash, a hang and a missing GPU are told apart."""

import json
import sys
import time

import pytest

from uino_deploy.cli import main
from uino_deploy.selftest import run as run_module
from uino_deploy.selftest.findings import Claim
from uino_deploy.selftest.run import run_selftest


def group(monkeypatch, script, claims=("first", "second", "third")):
    """Let one group be checked by a script instead of the real process."""
    made = {"group": lambda: [Claim(name, "how", list) for name in claims]}
    monkeypatch.setattr(run_module, "groups", lambda _setting, _gpu: made)
    code = "import json, os, sys, time\nsay = lambda **d: print(json.dumps(d), flush=True)\n"
    code += (
        "def passed(claim): say(begin=claim); say(findings=[dict(group='group', claim=claim, "
        "how='how', verdict='passed')])\n"
    )
    monkeypatch.setattr(run_module, "_COMMAND", [sys.executable, "-c", code + script])


def verdicts(report):
    return [(one.claim, one.verdict) for one in report.findings]


def test_every_claim_is_judged(monkeypatch):
    group(monkeypatch, "for name in ('first', 'second', 'third'): passed(name)")
    said = []
    report = run_selftest(say=said.append)
    assert verdicts(report) == [(name, "passed") for name in ("first", "second", "third")]
    assert said == [f"passed  group: {name}" for name in ("first", "second", "third")]
    assert report.count("passed") == 3


def test_a_crash_is_the_running_claims_failure(monkeypatch):
    crash = "passed('first'); say(begin='second'); print('boom', file=sys.stderr); os.abort()"
    group(monkeypatch, crash)
    report = run_selftest()
    assert verdicts(report) == [("first", "passed"), ("second", "failed"), ("third", "skipped")]
    assert report.findings[1].reason == "its process ended with -6: boom"
    assert "'second' ended the process" in report.findings[2].reason


def test_a_process_that_never_begins_fails_every_claim(monkeypatch):
    group(monkeypatch, "sys.exit('no such module')")
    report = run_selftest()
    assert {one.verdict for one in report.findings} == {"failed"}
    assert "no such module" in report.findings[0].reason


def test_the_time_limit_ends_what_runs_and_begins_nothing_more(monkeypatch):
    group(monkeypatch, "passed('first'); say(begin='second'); time.sleep(60)")
    begun = time.monotonic()
    report = run_selftest(minutes=2 / 60)
    assert time.monotonic() - begun < 20
    assert {verdict for _, verdict in verdicts(report)} <= {"passed", "skipped"}
    assert verdicts(report)[2] == ("third", "skipped")
    assert "time was up" in report.findings[2].reason


def test_lines_that_come_in_parts_are_put_together(monkeypatch):
    script = """
line = json.dumps(dict(findings=[dict(group='g', claim='first', how='h', verdict='failed',
                                      reason='x' * 200_000)]))
say(begin='first')
for part in (line[:7], line[7:100_000], line[100_000:] + chr(10)):
    sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.05)
"""
    group(monkeypatch, script, claims=("first",))
    (finding,) = run_selftest().findings
    assert len(finding.reason) == 200_000


def test_without_a_gpu_every_claim_is_listed_and_skipped(monkeypatch):
    monkeypatch.setattr(run_module, "_describe_device", lambda _setting: (None, "no GPU here"))
    report = run_selftest(gpu=True)
    assert report.without_gpu == "no GPU here"
    assert {one.verdict for one in report.findings} == {"skipped"}
    groups = {one.group.partition(" ")[0] for one in report.findings}
    assert groups >= {"gpu", "kernels", "tensorrt", "tensorrt-rtx", "onnxruntime:cuda"}
    claims = [(one.group, one.claim) for one in report.findings]
    assert len(claims) == len(set(claims))


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["selftest", *map(str, arguments)])
    return stopped.value.code, capsys.readouterr()


def test_the_command_exits_with_3_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run_module, "_describe_device", lambda _setting: (None, "no GPU here"))
    code, captured = command(capsys, "--gpu", "-o", tmp_path / "report.json")
    assert code == 3
    assert captured.out.splitlines()[-1] == "FAILED: nothing could be checked: no GPU here"
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["passed"] is False
    assert document["counts"]["passed"] == 0
    assert set(document["findings"][0]) >= {"claim", "how", "measured", "bound", "verdict"}
    code, captured = command(capsys, "--gpu", "-o", tmp_path / "report.json")
    assert code == 2
    assert "report.json" in captured.err


@pytest.mark.parametrize(
    ("script", "code", "last"),
    [
        ("passed('first')", 0, "PASSED"),
        ("say(begin='first'); os._exit(9)", 1, "FAILED: group: first"),
    ],
)
def test_the_command_judges(monkeypatch, capsys, script, code, last):
    group(monkeypatch, script, claims=("first",))
    found, captured = command(capsys)
    assert (found, captured.out.splitlines()[-1]) == (code, last)
    found, captured = command(capsys, "--json")
    document = json.loads(captured.out)
    assert (found, document["passed"]) == (code, code == 0)


def test_where_nothing_can_be_checked_nothing_passes(monkeypatch, capsys):
    script = "say(begin='first'); say(findings=[dict(group='g', claim='first', how='h', "
    group(monkeypatch, script + "verdict='skipped', reason='no torch')])", claims=("first",))
    code, captured = command(capsys)
    assert code == 3
    assert captured.out.splitlines()[-1].startswith("FAILED: nothing could be checked here")


def test_a_bundle_that_is_none_is_said_before_anything_runs(capsys, tmp_path):
    code, captured = command(capsys, "--bundle", tmp_path)
    assert code == 2
    assert "is not a bundle" in captured.err
