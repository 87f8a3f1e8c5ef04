"""The self-test passes correct pieces and fails wrong ones, on real exports."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.runtime.fake_cuda import FakeTensorRt
from tests.runtime.test_tensorrt_backend import with_plans
from uino_deploy.runtime import cuda_memory, tensorrt_backend
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeSession
from uino_deploy.selftest import bundle as bundle_claims
from uino_deploy.selftest import gpu, run_selftest
from uino_deploy.selftest.findings import judge
from uino_deploy.selftest.groups import groups
from uino_deploy.selftest.setting import Setting


def check(setting, group, on_gpu=False):
    """Check a group in this process; return its findings by claim."""
    found = {}
    for claim in groups(setting, on_gpu)[group]():
        for finding in judge(group, claim):
            found.setdefault(claim.name, []).append(finding)
    return found


def verdicts(found, name):
    return {finding.verdict for finding in found[name]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Time and repeat little: these timings mean nothing."""
    for name, count in (("_WARM", 1), ("_TIMED", 2), ("_ROUNDS", 1)):
        monkeypatch.setattr(bundle_claims, name, count)


@pytest.fixture
def setting(bundle, tmp_path):
    return Setting(scratch=str(tmp_path), bundle=str(bundle.root))


def test_a_right_bundle_passes(setting):
    found = check(setting, "onnxruntime tiny.uino")
    assert {f.verdict for findings in found.values() for f in findings} == {"passed"}, found
    compared = {f.claim for f in found["every piece and the whole model match PyTorch"]}
    assert any("prompt.dense" in claim for claim in compared)
    assert any("the whole model, mask" in claim for claim in compared)
    found = check(setting, "onnxruntime tiny.uino speed")
    assert {f.verdict for findings in found.values() for f in findings} == {"passed"}, found
    assert len(found["latency"]) == 6


def test_a_piece_that_is_slightly_wrong_fails_its_claim_alone(setting, monkeypatch):
    compute = OnnxRuntimeSession.compute

    def wrong(self, feeds):
        outputs = compute(self, feeds)
        if "dense" in outputs:
            outputs["dense"] = outputs["dense"] * np.float32(1.001)
        return outputs

    monkeypatch.setattr(OnnxRuntimeSession, "compute", wrong)
    found = check(setting, "onnxruntime tiny.uino")
    failed = [f.claim for findings in found.values() for f in findings if f.verdict == "failed"]
    assert failed == ["every piece and the whole model match PyTorch: prompt.dense"]


def test_a_backend_that_forgets_a_class_is_found(setting, monkeypatch):
    compute, seen = OnnxRuntimeSession.compute, {}

    def stale(self, feeds):
        if "support_deep" in feeds and "query_deep" in feeds:
            feeds["prototypes"] = seen.setdefault("prototypes", feeds["prototypes"])
        return compute(self, feeds)

    monkeypatch.setattr(OnnxRuntimeSession, "compute", stale)
    found = check(setting, "onnxruntime tiny.uino")
    assert "failed" in verdicts(found, "every piece and the whole model match PyTorch")


def test_it_runs_where_torch_triton_and_onnx_are_not_installed(bundle):
    code = f"""
import sys
for name in ("torch", "triton", "onnx", "onnxscript", "transformers"):
    sys.modules[name] = None
from uino_deploy.selftest.findings import judge
from uino_deploy.selftest.groups import groups
from uino_deploy.selftest.setting import Setting
setting = Setting(scratch="/nowhere", bundle={str(bundle.root)!r})
for name in ("operators", "onnxruntime tiny.uino", "onnxruntime tiny.uino speed"):
    for claim in groups(setting, False)[name]():
        for finding in judge(name, claim):
            print(finding.verdict, finding.claim, finding.reason)
for name, make in groups(setting, True).items():
    assert make(), name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("failed")]
    assert len([line for line in lines if line.startswith("passed")]) > 15
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 10
    assert "torch is not installed" in skipped[0]


def test_the_whole_run_with_a_bundle(bundle):
    report = run_selftest(bundle.root)
    groups_seen = list(dict.fromkeys(finding.group for finding in report.findings))
    assert groups_seen[:2] == ["operators", "onnxruntime tiny.uino"]
    assert report.count("failed") == 0
    assert report.count("passed") > 20
    assert report.gpu is None


# --- the GPU's claims, on a CUDA and a TensorRT in numpy


@pytest.fixture
def planned(bundle, tmp_path, cudart, monkeypatch):
    trt = FakeTensorRt(cudart)
    monkeypatch.setattr(tensorrt_backend, "_import_tensorrt", lambda _name: trt)
    root = with_plans(bundle.root, tmp_path, largest=1).root
    return Setting(scratch=str(tmp_path), bundle=str(root), architecture="sm_87", cuda="12.6")


def test_the_gpu_is_described(cudart):
    assert gpu.describe_device() == {
        "name": "Fake GPU",
        "architecture": "sm_87",
        "cuda": "12.6",
    }
    (claim,) = gpu.device_claims()
    assert {finding.verdict for finding in judge("gpu", claim)} == {"passed"}


def test_plans_pass_on_a_right_gpu(planned):
    found = check(planned, "tensorrt planned.uino", on_gpu=True)
    plugins = found.pop("the plugins inside the engine match the portable ONNX functions")
    assert {finding.verdict for finding in plugins} == {"skipped"}, plugins
    assert {f.verdict for findings in found.values() for f in findings} == {"passed"}, found
    found = check(planned, "tensorrt planned.uino speed", on_gpu=True)
    assert {f.verdict for findings in found.values() for f in findings} == {"passed"}, found
    assert any("engines on the device" in f.claim for f in found["memory, which does not grow"])


@pytest.fixture
def with_plugins(bundle, tmp_path, cudart, monkeypatch):
    """Plans that say they have plugins; those of the functions are their copies."""
    trt = FakeTensorRt(cudart)
    monkeypatch.setattr(tensorrt_backend, "_import_tensorrt", lambda _name: trt)
    plugins = {
        "Correlation4d": 1,
        "ScanPrologue": 4,
        "SelectiveScan2d": 4,
        "ScanEpilogue": 4,
        "NormMlp": 2,
    }
    root = with_plans(bundle.root, tmp_path, largest=1, plugins=plugins).root
    built = []

    def build(_setting, _bundle, target, _backend, kind, pieces):
        built.append((kind, pieces))
        shutil.copytree(root, target)

    monkeypatch.setattr(gpu, "_build", build)
    yield Setting(scratch=str(tmp_path), bundle=str(root), architecture="sm_87", cuda="12.6")
    assert built == [("none", ("prompt",))]  # the plan with plugins is the bundle's


PLUGINS = "the plugins inside the engine match the portable ONNX functions"


def test_plugins_are_held_against_an_engine_of_the_functions(with_plugins):
    found = check(with_plugins, "tensorrt planned.uino", on_gpu=True)
    assert verdicts(found, PLUGINS) == {"passed"}, found[PLUGINS]
    assert found[PLUGINS][0].measured == 15


def test_a_plugin_that_is_not_the_body_is_found(with_plugins, monkeypatch):
    run, factors = gpu._run_piece, itertools.cycle([1.01, 1.0])

    def wrong(bundle, backend):
        factor = np.float32(next(factors))
        return {name: factor * array for name, array in run(bundle, backend).items()}

    monkeypatch.setattr(gpu, "_run_piece", wrong)
    found = check(with_plugins, "tensorrt planned.uino", on_gpu=True)
    assert "failed" in verdicts(found, PLUGINS)


def test_a_leak_on_the_gpu_is_found(planned, monkeypatch):
    device = cuda_memory.Device
    monkeypatch.setattr(device, "give", lambda *_: None)
    found = check(planned, "tensorrt planned.uino speed", on_gpu=True)
    assert "failed" in verdicts(found, "memory, which does not grow")


def test_what_other_programs_take_of_the_gpu_is_no_growth(planned, monkeypatch):
    free = itertools.count(1 << 40, -(64 << 20))
    monkeypatch.setattr(cuda_memory.Device, "memory", lambda _self: (next(free), 2 << 40))
    found = check(planned, "tensorrt planned.uino speed", on_gpu=True)
    memory = found["memory, which does not grow"]
    assert {finding.verdict for finding in memory} == {"passed"}, memory
    assert "this process's use" in memory[-1].claim


def test_growth_of_this_process_is_found_where_the_driver_tells(planned, monkeypatch):
    held = iter([1 << 30, (1 << 30) + (64 << 20)])
    monkeypatch.setattr(bundle_claims.nvml, "process_bytes", lambda _process: next(held))
    found = check(planned, "tensorrt planned.uino speed", on_gpu=True)
    failed = [f for f in found["memory, which does not grow"] if f.verdict == "failed"]
    assert [f.measured for f in failed] == [64 << 20]


def test_a_graph_that_loses_its_inputs_is_found(planned, cudart, monkeypatch):
    def launch(self, graph):
        if not hasattr(self, "launched"):
            self.launched = True
            cudart.cudaGraphLaunch(graph.executable, self._held.stream)

    monkeypatch.setattr(cuda_memory.Device, "launch", launch)
    found = check(planned, "tensorrt planned.uino", on_gpu=True)
    assert "failed" in verdicts(found, "CUDA graphs give the same results")


def test_without_plans_the_claims_say_which_claim_tells_why(bundle, tmp_path, cudart, monkeypatch):
    trt = FakeTensorRt(cudart)
    monkeypatch.setattr(tensorrt_backend, "_import_tensorrt", lambda _name: trt)
    copy = shutil.copytree(bundle.root, tmp_path / "bare.uino")
    setting = Setting(scratch=str(tmp_path), bundle=str(copy), architecture="sm_87")
    found = check(setting, "tensorrt bare.uino", on_gpu=True)
    assert {f.verdict for findings in found.values() for f in findings} == {"skipped"}, found
    found |= check(setting, "tensorrt bare.uino speed", on_gpu=True)
    assert "first claim of the group of its plans" in found["latency"][0].reason
