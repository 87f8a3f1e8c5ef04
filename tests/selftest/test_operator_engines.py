"""The claims about operators alone in engines, on a CUDA and a TensorRT in numpy.

The fake's engines compute the portable function with ONNX Runtime, whatever they are asked for:
what is shown here is that each engine is built as asked, run on its inputs and held to its bound.
"""

from pathlib import Path

import pytest

from tests.runtime.fake_cuda import FakeCudart, FakeTensorRt
from tests.selftest.faults import exchanged, one_shot, scaled
from uino_deploy.config import UinoConfig
from uino_deploy.export.engine_job import Outcome
from uino_deploy.kernels.plugins.library import OPERATORS
from uino_deploy.runtime import cuda_memory, tensorrt_backend
from uino_deploy.runtime.tensorrt_backend import TensorRtSession
from uino_deploy.selftest import operator_engines
from uino_deploy.selftest.findings import judge
from uino_deploy.selftest.setting import Setting


class Builder:
    """A builder's process: a plan is the path of its ONNX file, as `FakeTensorRt` wants it."""

    def __init__(self):
        self.jobs, self.plugins = [], None

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def build(self, _child, job):
        self.jobs.append(job)
        Path(job.plan).write_text(job.onnx)
        (kernel,) = [o.kernel for o in OPERATORS.values() if o.kernel in job.plan]
        made = [f"node_{kernel}"] if job.plugins else []
        return Outcome(
            version=FakeTensorRt.__version__,
            plugins=made if self.plugins is None else self.plugins,
            route="aot" if job.plugins else "function",
        )


@pytest.fixture
def builder(monkeypatch):
    cudart, made = FakeCudart(), Builder()
    trt = FakeTensorRt(cudart)
    monkeypatch.setattr(cuda_memory, "import_cudart", lambda: cudart)
    monkeypatch.setattr(tensorrt_backend, "_import_tensorrt", lambda _name: trt)
    monkeypatch.setattr(operator_engines, "builder", lambda: made)
    monkeypatch.setattr(operator_engines, "build_in", made.build)
    return made


@pytest.fixture
def setting(tmp_path):
    return Setting(scratch=str(tmp_path), kernels=str(tmp_path), architecture="sm_87", cuda="12.6")


@pytest.fixture
def few(monkeypatch):
    """One preset's tilings, in one type."""
    monkeypatch.setattr(Setting, "configs", lambda _self: [UinoConfig.from_preset("tiny")])
    monkeypatch.setattr(operator_engines, "dtypes_of", lambda _arch: ["float16"])


def findings(setting, backend="tensorrt"):
    made = operator_engines.claims(setting, backend)
    return {claim.name: judge("operators", claim) for claim in made}


def verdicts(found):
    return {finding.verdict for each in found.values() for finding in each}


def test_every_operator_form_type_and_tiling_is_held_to_its_own_bound(setting, builder):
    setting.architecture = "sm_75"  # no bfloat16: ONNX Runtime, the fake's engine, lacks products
    found = findings(setting)
    assert verdicts(found) == {"passed"}, found
    forms = ("plugin", "function")
    assert list(found) == [
        f"{name}'s {form}, alone in an engine, computes it" for name in OPERATORS for form in forms
    ]
    # Types by pools, by widths, by widths over both planes, or by widths with both tilings.
    assert sorted(map(len, found.values())) == [4, 4, 6, 6, *[12] * 6]
    assert {finding.bound for each in found.values() for finding in each} == {1e-5, 2e-3}
    assert len(builder.jobs) == len({job.plan for job in builder.jobs}) == 92
    assert sum(job.plugins for job in builder.jobs) == 46
    assert not any(job.tf32 for job in builder.jobs)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("fault", "spoiled"),
    [
        (scaled, tuple(OPERATORS)),
        (one_shot, ("Correlation4d",)),
        (exchanged, tuple(OPERATORS)[1:]),
    ],
)
def test_a_fault_in_an_engine_is_found(setting, builder, monkeypatch, fault, spoiled):
    run = TensorRtSession.run

    def wrong(self, feeds):
        found = run(self, feeds)
        (operator,) = [o for o in OPERATORS.values() if {t.name for t in o.inputs} == set(feeds)]
        if operator.name in spoiled:
            first = operator.outputs[0].name
            found = {**found, first: fault(found[first])}
        return found

    monkeypatch.setattr(TensorRtSession, "run", wrong)
    for claim, each in findings(setting).items():
        wanted = "failed" if claim.partition("'")[0] in spoiled else "passed"
        assert {finding.verdict for finding in each} == {wanted}, claim


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("plugins", "words"),
    [([], "0 plugin layers for 1 calls"), (["node"], "node became a plugin")],
    ids=["function-for-plugin", "plugin-for-function"],
)
def test_an_engine_that_is_the_other_form_is_found(setting, builder, plugins, words):
    builder.plugins = plugins
    found = findings(setting)
    form = "function" if plugins else "plugin"
    for claim, each in found.items():
        if form in claim:
            (finding,) = each
            assert finding.verdict == "failed"
            assert words in finding.reason
        else:
            assert {finding.verdict for finding in each} == {"passed"}


@pytest.mark.usefixtures("few")
def test_tensorrt_rtx_has_functions_alone(setting, builder):
    setting.architecture = "sm_89"
    found = findings(setting, "tensorrt-rtx")
    assert len(found) == len(OPERATORS)
    assert verdicts(found) == {"passed"}
    setting.architecture = "sm_87"
    assert verdicts(findings(setting, "tensorrt-rtx")) == {"skipped"}


def test_without_kernels_the_functions_are_checked_all_the_same(setting, builder, few):
    setting.kernels = None
    found = findings(setting)
    for claim, each in found.items():
        wanted = "skipped" if "plugin" in claim else "passed"
        assert {finding.verdict for finding in each} == {wanted}
