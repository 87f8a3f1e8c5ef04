"""The numpy references match the operators, and a wrong kernel is found."""

import numpy as np
import pytest
import torch

from uino_deploy.config import UinoConfig
from uino_deploy.kernels import native
from uino_deploy.kernels.compiler.targets import DTYPES
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.correlation import reference
from uino_deploy.kernels.plugins.library import OPERATORS, Launch
from uino_deploy.selftest import cases as cases_module
from uino_deploy.selftest import operators
from uino_deploy.selftest.cases import (
    SCAN,
    Case,
    cases_of,
    exact_on_gpu,
    in_torch,
    listed,
    model_cases,
    narrow,
    ragged_cases,
)
from uino_deploy.selftest.findings import CannotCheck, judge
from uino_deploy.selftest.operators import compare
from uino_deploy.selftest.setting import Setting

CONFIG = UinoConfig.from_preset("tiny")
RAGGED = ragged_cases([CONFIG])


@pytest.mark.parametrize("found", [RAGGED, model_cases(CONFIG)], ids=["ragged", "model"])
def test_the_references_are_pytorchs(found):
    assert {case.operator.name for case in found} == set(OPERATORS)
    for case in found:
        tensors = [torch.from_numpy(array) for array in case.inputs.values()]
        wanted = listed(in_torch(case.operator)(*tensors, **case.attributes))
        for got, exact in zip(case.exact(case.inputs), wanted, strict=True):
            np.testing.assert_allclose(got, exact.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", [1, 2, 3, 8])
def test_a_support_shared_by_the_batch_and_ragged_windows(pool):
    random = np.random.default_rng(3)
    query, support = random.normal(size=(3, 2, 5, 16)), random.normal(size=(1, 2, 2, 20, 16))
    weight = random.normal(size=(1, 2, 20))
    grid = {"height": 4, "width": 5, "pool": pool}
    tensors = [torch.from_numpy(array) for array in (query, support, weight)]
    wanted = correlation.correlation4d(*tensors, **grid).numpy()
    found = reference.correlation4d(query, support, weight, **grid)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_variant_without_the_operators_cannot_be_checked():
    compact = UinoConfig.from_preset("tiny", "comp")
    assert ragged_cases([compact]) == model_cases(compact) == []
    with pytest.raises(CannotCheck):
        cases_of(SCAN, [])


@pytest.mark.parametrize("case", RAGGED, ids=lambda case: case.where)
def test_the_reference_on_a_gpu_is_numpys(case, monkeypatch):
    arrays = case.arrays("bfloat16")
    monkeypatch.setattr(cases_module, "_torch_device", lambda: "cpu")
    for got, exact in zip(exact_on_gpu(case, arrays), case.exact(arrays), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(cases_module, "_torch_device", lambda: None)
    for got, exact in zip(exact_on_gpu(case, arrays), case.exact(arrays), strict=True):
        np.testing.assert_array_equal(got, exact)


class AnyKernel:
    """A library whose every launch is the same."""

    def launch(self, *_asked):
        return Launch(None, (1, 1, 1), [])


def exact_of(case):
    """Return a kernel that computes a case as well as its type allows."""

    def run(_launch, inputs, like):
        named = dict(zip(case.inputs, inputs, strict=True))
        kind = "bfloat16" if like[0].dtype == np.uint16 else str(like[0].dtype)
        return [narrow(result, kind) for result in case.exact(named)]

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", RAGGED, ids=lambda case: case.where)
def test_a_right_kernel_passes_in_every_type(case, dtype):
    measured = compare(AnyKernel(), case, dtype, exact_of(case))
    assert measured.holds
    assert (measured.value > 0) or dtype == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", RAGGED, ids=lambda case: case.where)
def test_a_kernel_that_leaves_one_value_out_is_found(case: Case, dtype):
    def run(launch, inputs, like):
        out = exact_of(case)(launch, inputs, like)
        out[-1].reshape(-1)[5] = 0xFFFF if out[-1].dtype == np.uint16 else np.nan
        return out

    assert not compare(AnyKernel(), case, dtype, run).holds


def test_native_operators_that_are_not_there_do_not_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: "it was not built")
    setting = Setting(scratch=str(tmp_path))
    claims = [claim for claim in operators.claims(setting) if "native form" in claim.name]
    assert len(claims) == 2
    for (finding,) in (judge("operators", claim) for claim in claims):
        assert finding.verdict == "skipped"
        assert "it was not built" in finding.reason


def test_the_claims_say_what_they_lack(tmp_path):
    setting = Setting(scratch=str(tmp_path))
    findings = [one for claim in operators.claims(setting) for one in judge("operators", claim)]
    agree = [one for one in findings if "PyTorch" in one.claim]
    natives = [one for one in findings if "native form" in one.claim]
    compiled = [one for one in findings if one not in agree + natives]
    assert len(agree) == len(RAGGED)
    assert {one.claim.partition("'")[0] for one in natives} == {"Correlation4d", "SelectiveScan2d"}
    assert all(one.verdict == "passed" for one in agree + natives)
    assert {one.verdict for one in compiled} == {"skipped"}
    assert all("uino-deploy kernels build --arch sm_87" in one.reason for one in compiled)
