"""The process that builds an engine, against a stand-in for TensorRT that records what it does."""

import sys
import types

import pytest

from tests.export.fake_tensorrt import FakeTensorrt, Status, fake_cuda
from uino_deploy.bundle.plans import Gpu
from uino_deploy.errors import DependencyError
from uino_deploy.export.engine_job import Job, Progress, run

SHAPES = {"early": ([1, 4], [2, 4], [3, 4])}


@pytest.fixture
def trt(monkeypatch):
    """Install the stand-ins as if they were the packages."""
    return install(monkeypatch, FakeTensorrt())


def install(monkeypatch, fake, cuda=None):
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda or fake_cuda())
    return fake


@pytest.fixture
def registered(monkeypatch):
    """Stand in for the plugins' registration; the list holds its arguments."""
    calls = []

    def register(architecture, kernels, route=None):
        calls.append((architecture, kernels))
        return route or "aot"

    monkeypatch.setattr("uino_deploy.kernels.plugins.register_plugins", register)
    return calls


@pytest.fixture
def job(tmp_path, bundle):
    return Job(
        backend="tensorrt",
        onnx=str(bundle.path("prompt.onnx")),
        plan=str(tmp_path / "prompt.plan"),
        arch="sm_87",
        shapes=SHAPES,
        workspace=1 << 30,
    )


def test_every_option_reaches_the_builder(trt, job, tmp_path):
    outcome = run(job)
    assert outcome.error == ""
    assert (tmp_path / "prompt.plan").read_bytes() == b"a plan"
    assert trt.asked["flags"] == 1 << 1
    assert trt.asked["shapes"] == {"early": ([1, 4], [2, 4], [3, 4])}
    assert trt.asked["workspace"] == 1 << 30
    assert trt.config.profiling_verbosity == "detailed"
    assert outcome.layers == {"HALF": 2}
    assert outcome.matrix_layers == {"HALF": 1}
    assert outcome.plugins == ["node_correlation4d"]
    assert outcome.gpu == Gpu(name="Orin", capability="8.7", driver=12060, runtime=12060)
    assert outcome.version == "10.13.3.9"
    assert "Layers" in outcome.inspector


def test_one_shape_is_static_and_needs_no_profile(trt, job):
    job.shapes = {"early": ([2, 4], [2, 4], [2, 4])}
    assert run(job).error == ""
    assert trt.input.shape == (2, 4)
    assert "shapes" not in trt.asked


def test_only_what_ranges_stays_dynamic(trt, job):
    run(job)
    assert trt.input.shape == (-1, 4)
    assert trt.asked["shapes"]["early"] == ([1, 4], [2, 4], [3, 4])


def test_a_range_that_is_refused_is_an_error(trt, job):
    trt.accepts_profile = False
    assert run(job).error == "TensorRT refuses the range of early: it gives no reason"


@pytest.mark.parametrize("kind", ["Builder", "OnnxParser", "Runtime"])
def test_what_tensorrt_cannot_make_is_an_error(trt, job, kind):
    trt.missing = kind
    outcome = run(job)
    assert outcome.error.startswith("TensorRT cannot create a ")
    assert (outcome.kind, outcome.hint) == ("build", "is the driver installed?")


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_cleared_unless_asked_for(trt, job, asked):
    job.tf32 = asked
    run(job)
    assert trt.flags == ({trt.BuilderFlag.TF32} if asked else set())


def test_the_outermost_phase_is_reported(trt, job):
    notes = []
    run(job, notes.append)
    assert notes == [Progress(phase="Building engine", step=1, steps=2)]


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "11.4.1"])
def test_plugins_are_registered_and_the_bodies_left_out(
    monkeypatch, job, registered, tmp_path, version
):
    """Without the functions, a plugin that is not found is the parser's error, on every version."""
    trt = install(monkeypatch, FakeTensorrt(version))
    job.plugins, job.kernels = True, str(tmp_path)
    outcome = run(job)
    assert registered == [("sm_87", tmp_path)]
    assert outcome.route == "aot"
    data, path = trt.asked["parse"]
    assert path == job.onnx
    assert b"node_correlation4d" in data
    with open(job.onnx, "rb") as file:
        assert len(data) < len(file.read())


def test_without_plugins_nothing_is_registered(trt, job, registered):
    assert run(job).route == "function"
    assert registered == []
    assert trt.asked["parse_from_file"] == job.onnx


def test_a_failed_registration_is_no_fallback(trt, job, monkeypatch):
    def refuse(*_arguments):
        raise DependencyError("TensorRT 10.3 needs numpy below 2", "pip install 'numpy<2'")

    monkeypatch.setattr("uino_deploy.kernels.plugins.register_plugins", refuse)
    job.plugins = True
    outcome = run(job)
    assert (outcome.kind, outcome.hint) == ("dependency", "pip install 'numpy<2'")
    assert "numpy below 2" in outcome.error


def test_timings_are_used_and_extended(trt, job, tmp_path):
    cache = tmp_path / "timings"
    job.timing_cache = str(cache)
    run(job)
    assert trt.asked["timings"] == (b"", False)
    assert cache.read_bytes() == b"extended"
    run(job)
    assert trt.asked["timings"] == (b"extended", False)


def test_foreign_timings_are_refused(trt, job, tmp_path):
    job.timing_cache = str(tmp_path / "timings")
    trt.accepts_timings = False
    outcome = run(job)
    assert outcome.kind == "input"
    assert "belongs to another TensorRT version or GPU" in outcome.error
    assert not (tmp_path / "prompt.plan").exists()


def test_another_gpu_is_refused_before_the_build(monkeypatch, job):
    trt = install(monkeypatch, FakeTensorrt(), fake_cuda(11, 0))
    outcome = run(job)
    assert outcome.kind == "input"
    assert "Orin, which is sm_110" in outcome.error
    assert "--arch sm_110" in outcome.hint
    assert trt.asked == {}


def test_no_gpu_is_a_missing_dependency(monkeypatch, job):
    install(monkeypatch, FakeTensorrt(), fake_cuda(status=Status.cudaErrorNoDevice))
    outcome = run(job)
    assert outcome.kind == "dependency"
    assert "cudaErrorNoDevice (100)" in outcome.error


def test_a_fault_of_the_gpu_is_nothing_missing(monkeypatch, job):
    install(monkeypatch, FakeTensorrt(), fake_cuda(status=Status.cudaErrorIllegalAddress))
    outcome = run(job)
    assert outcome.kind == "build"
    assert "cudaErrorIllegalAddress (700)" in outcome.error


def test_the_parsers_words_are_passed_on(trt, job):
    trt.parses = False
    assert run(job).error == "Conv node_1: type mismatch"


def test_the_builders_words_are_passed_on(trt, job, tmp_path):
    trt.builds = False
    assert run(job).error == "Could not find any implementation for node gemm"
    assert not (tmp_path / "prompt.plan").exists()


def test_an_engine_that_does_not_load_is_an_error(trt, job):
    trt.loads = False
    assert "cannot be loaded" in run(job).error
