"""Exported bundles on OpenVINO, with our operators in its own."""

import pytest

openvino = pytest.importorskip("openvino")

from uino_deploy.export import verify_bundle  # noqa: E402
from uino_deploy.runtime import openvino_backend  # noqa: E402


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_exported_bundle_passes_verification(exported, model, precision):
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        pytest.skip("this processor does not compute bfloat16")
    backend = openvino_backend.OpenVinoBackend(threads=1, cache=False)
    report = verify_bundle(exported(precision), backend, model)
    assert report.reason == ""
    worst = max(compared.relative_l2 for compared in report.pieces)
    assert worst < 1e-4 if precision == "fp32" else 1e-4 < worst < 0.1
