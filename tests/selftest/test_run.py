"""Groups run in separate processes; a crash, a hang and a missing GPU are distinguished."""

import json
import os
import textwrap
import time

import pytest

from uino_deploy.child import ChildFailed
from uino_deploy.cli import main
from uino_deploy.errors import DependencyError
from uino_deploy.selftest import groups as groups_module
from uino_deploy.selftest import run as run_module
from uino_deploy.selftest.findings import Claim
from uino_deploy.selftest.groups import required
from uino_deploy.selftest.run import run_selftest
from uino_deploy.selftest.setting import Setting


@pytest.fixture
def group(monkeypatch, tmp_path):
    """Return a function that lets one group be checked by a script instead of the real job."""

    def group(script, claims=("first", "second", "third"), required=()):
        made = {"group": lambda: [Claim(name, "how", list) for name in claims]}
        monkeypatch.setattr(run_module, "groups", lambda _setting, _gpu: made)
        monkeypatch.setattr(run_module, "required", lambda _setting, _gpu: list(required))
        code = "import json, os, sys, time\ndef job(_request, note):\n"
        code += textwrap.indent(SAY + textwrap.dedent(script), "    ")
        (tmp_path / "made_up_job.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(run_module, "_CHECK", "made_up_job:job")

    return group


SAY = """
def say(**message): note(message)
def passed(claim):
    say(begin=claim)
    say(findings=[dict(group='group', claim=claim, how='how', verdict='passed')])
"""


def verdicts(report):
    return [(one.claim, one.verdict) for one in report.findings]


def test_every_claim_is_judged(group):
    group("for name in ('first', 'second', 'third'): passed(name)")
    said = []
    report = run_selftest(say=said.append)
    assert verdicts(report) == [(name, "passed") for name in ("first", "second", "third")]
    assert said == [f"passed  group: {name}" for name in ("first", "second", "third")]
    assert report.count("passed") == 3


def test_a_crash_is_the_running_claims_failure(group):
    crash = "passed('first'); say(begin='second'); print('boom', file=sys.stderr); os.abort()"
    group(crash)
    report = run_selftest()
    assert verdicts(report) == [("first", "passed"), ("second", "failed"), ("third", "skipped")]
    assert report.findings[1].reason == "its process died of SIGABRT: boom"
    assert "'second' ended the process" in report.findings[2].reason


def test_a_process_that_never_begins_fails_every_claim(group):
    group("sys.exit('no such module')")
    report = run_selftest()
    assert {one.verdict for one in report.findings} == {"failed"}
    assert "no such module" in report.findings[0].reason


def test_the_claim_that_runs_when_the_time_is_up_has_failed(group):
    group("passed('first'); say(begin='second'); time.sleep(60)", required=["group"])
    begun = time.monotonic()
    report = run_selftest(minutes=3 / 60)
    assert time.monotonic() - begun < 20
    assert verdicts(report) == [("first", "passed"), ("second", "failed"), ("third", "skipped")]
    assert report.findings[1].reason.startswith("still running at the time limit")
    assert report.required == {"group": "not started before the time limit"}
    assert report.document()["passed"] is False


def test_a_group_that_the_time_did_not_reach_did_not_run(group):
    group("passed('first')", claims=("first",), required=["group"])
    report = run_selftest(minutes=1e-9)
    assert verdicts(report) == [("first", "skipped")]
    assert report.required == {"group": "not started before the time limit"}
    assert report.failures == ["group did not run: not started before the time limit"]


def test_a_long_finding_arrives_whole(group):
    script = """
        say(begin='first')
        long = dict(group='g', claim='first', how='h', verdict='failed', reason='x' * 200_000)
        say(findings=[long])
    """
    group(script, claims=("first",))
    (finding,) = run_selftest().findings
    assert len(finding.reason) == 200_000


NO_ENGINE = """
    passed('first') if {passes} else None
    for name in ('second', 'third'):
        say(begin=name)
        skipped = dict(claim=name, how='h', verdict='skipped', reason='no engine')
        say(findings=[dict(group='group', **skipped)])
"""


def test_a_required_group_that_checked_nothing_means_not_passed(group, capsys):
    group(NO_ENGINE.format(passes=False), claims=("second", "third"), required=["group"])
    report = run_selftest()
    assert report.required == {"group": "no engine"}
    assert report.failures == ["group did not run: no engine"]
    group(NO_ENGINE.format(passes=True), required=["group"])
    assert run_selftest().required == {"group": ""}
    code, captured = command(capsys)
    assert code == 0
    assert "required groups that ran: group" in captured.out.splitlines()


def test_the_verdict_names_the_required_group_that_did_not_run(group, capsys, monkeypatch):
    group("passed('first')", claims=("first",))
    monkeypatch.setattr(run_module, "required", lambda *_: ["group", "tensorrt fp32"])
    code, captured = command(capsys)
    assert code == 1
    assert "required groups that ran: group" in captured.out
    last = captured.out.splitlines()[-1]
    assert last == "FAILED: tensorrt fp32 did not run: it has no claims"


def test_a_group_is_required_where_its_packages_are(monkeypatch):
    have = {"tensorrt", "tensorrt_rtx", "torch", "onnx", "onnxscript"}
    monkeypatch.setattr(groups_module, "is_importable", have.__contains__)
    monkeypatch.setattr(groups_module, "installed_version", lambda _name: None)
    setting = Setting(scratch="", architecture="sm_89", precision="fp16")
    assert required(setting, True) == [
        *("gpu", "kernels", "tensorrt operators", "tensorrt-rtx operators", "export"),
        *("tensorrt fp16", "tensorrt-rtx fp16", "tensorrt fp16 speed", "tensorrt-rtx fp16 speed"),
    ]
    setting.architecture = "sm_87"  # TensorRT-RTX knows no Jetson
    assert not [name for name in required(setting, True) if "tensorrt-rtx" in name]
    have.discard("tensorrt")
    assert required(setting, True) == ["gpu", "kernels", "export"]
    have.discard("onnx")
    assert required(setting, True) == ["gpu", "kernels"]
    have |= {"onnxruntime", "openvino", "onnx"}
    setting.precision = "fp32"
    assert required(setting, False) == [
        *("operators", "export", "onnxruntime fp32", "openvino fp32"),
        *("onnxruntime fp32 speed", "openvino fp32 speed"),
    ]


def test_what_proves_most_comes_first():
    setting = Setting(scratch="", architecture="sm_89", precision="fp16")
    names = list(groups_module.groups(setting, True))
    assert names[:6] == [
        *("gpu", "kernels", "tensorrt operators", "tensorrt-rtx operators", "export"),
        "tensorrt fp16",
    ]
    speed = [name.endswith(" speed") for name in names]
    assert speed == sorted(speed)
    assert names.count("export") == 1
    claims = {
        name: [c.name for c in make()] for name, make in groups_module.groups(setting, True).items()
    }
    assert len(claims["export"]) == 1
    assert claims["tensorrt fp16"][:3] == [
        "every piece is built for sm_89",
        "the plugins inside the engine match the portable ONNX functions",
        "every piece and the whole model match PyTorch",
    ]
    assert claims["tensorrt fp16 speed"] == ["latency", "memory, which does not grow"]


@pytest.mark.parametrize("gpu", [False, True])
def test_the_checkpoint_is_exported_once_in_the_type_of_the_machine(monkeypatch, gpu):
    seen = []
    monkeypatch.setattr(run_module, "groups", lambda setting, _gpu: seen.append(setting) or {})
    monkeypatch.setattr(run_module, "required", lambda *_: [])
    monkeypatch.setattr(run_module, "_describe_device", no_gpu)
    run_selftest(gpu=gpu)
    (setting,) = seen
    assert setting.labels == (("fp16",) if gpu else ("fp32",))


def test_every_required_group_is_a_group():
    setting = Setting(scratch="", architecture="sm_89")
    for on_gpu in (False, True):
        assert set(required(setting, on_gpu)) <= set(groups_module.groups(setting, on_gpu))


def no_gpu(*_arguments):
    raise DependencyError("no GPU here")


def faulty(*_arguments):
    raise ChildFailed("died with status 1", "CudaError: cudaErrorIllegalAddress (700)")


def test_a_gpu_that_fails_to_start_is_a_failed_claim_and_nothing_missing(monkeypatch, capsys):
    monkeypatch.setattr(run_module, "_describe_device", faulty)
    report = run_selftest(gpu=True)
    assert report.without_gpu == ""
    (first, *others) = report.findings
    assert (first.group, first.verdict) == ("gpu", "failed")
    assert "cudaErrorIllegalAddress" in first.reason
    assert {one.verdict for one in others} == {"skipped"}
    code, captured = command(capsys, "--gpu")
    assert code == 1
    assert captured.out.splitlines()[-1].startswith("FAILED: gpu: a GPU is present")


def test_without_a_gpu_every_claim_is_listed_and_skipped(monkeypatch):
    monkeypatch.setattr(run_module, "_describe_device", no_gpu)
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
    monkeypatch.setattr(run_module, "_describe_device", no_gpu)
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
def test_the_command_judges(group, capsys, script, code, last):
    group(script, claims=("first",))
    found, captured = command(capsys)
    assert (found, captured.out.splitlines()[-1]) == (code, last)
    found, captured = command(capsys, "--json")
    document = json.loads(captured.out)
    assert (found, document["passed"]) == (code, code == 0)


def test_where_nothing_can_be_checked_nothing_passes(group, capsys):
    script = "say(begin='first'); say(findings=[dict(group='g', claim='first', how='h', "
    group(script + "verdict='skipped', reason='no torch')])", claims=("first",))
    code, captured = command(capsys)
    assert code == 3
    assert captured.out.splitlines()[-1].startswith(
        "FAILED: nothing could be checked on this machine"
    )


def test_a_bundle_that_is_none_is_said_before_anything_runs(capsys, tmp_path):
    code, captured = command(capsys, "--bundle", tmp_path)
    assert code == 2
    assert "is not a bundle" in captured.err
