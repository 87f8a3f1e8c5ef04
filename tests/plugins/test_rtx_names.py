"""The names that our code uses only with TensorRT-RTX exist there."""

import pytest

from tests.contract.names import RTX_ONLY, TENSORRT, uses

rtx = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    "path", ["export/engine_job.py", "uino_deploy/runtime/tensorrt_backend.py"]
)
def test_every_name_exists_in_tensorrt_rtx(path):
    for use in uses(path):
        if use.module == TENSORRT:
            assert use.missing(rtx) is None, f"{use.where}: no {'.'.join(use.chain)}"


def test_every_exempted_name_is_used():
    used = {name for use in uses("export/engine_job.py") for name in use.chain}
    assert used >= RTX_ONLY


def test_a_misspelt_name_is_found(tmp_path):
    source = tmp_path / "code.py"
    source.write_text(
        "def build(trt, builder):\n"
        "    if hasattr(trt, 'Guarded'):\n"
        "        trt.Guarded()\n"
        "    trt.Logger.WARNIN\n"
        "    builder.create_netwrk(0).num_layers\n"
        "    self._trt.MemoryPoolType.WORKSPACE\n"
    )
    found = {use.chain: use.missing(rtx) for use in uses(str(source))}
    assert found == {
        ("Logger",): None,
        ("Logger", "WARNIN"): "WARNIN",
        ("Builder", "create_netwrk"): "create_netwrk",
        ("MemoryPoolType",): None,
        ("MemoryPoolType", "WORKSPACE"): None,
    }
