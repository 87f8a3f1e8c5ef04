"""The reader behind the contract tests: it misses no file, and finds a name that does not exist."""

import ast

import pytest

from tests.contract.names import FILES, ROOT, RTX_ONLY, TENSORRT, uses

FOLDERS = ("benchmarks", "export", "kernels", "uino_deploy")


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def speaks_tensorrt(path):
    """Say whether a file holds the library under one of our names for it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}
    return bool(names & {"trt", "trtp", "_trt"})


def test_every_file_that_speaks_tensorrt_is_held_to_the_contract():
    # The links in uino_deploy lead to the other folders.
    paths = {
        path.resolve().relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path for path in paths if speaks_tensorrt(ROOT / path)} <= FILES.keys()
    assert all((ROOT / path).is_file() for path in FILES)


@pytest.mark.parametrize(
    "path", ["export/engine_job.py", "uino_deploy/runtime/tensorrt_backend.py"]
)
def test_every_name_exists_in_tensorrt_rtx(rtx, path):
    for use in uses(path):
        if use.module == TENSORRT:
            assert use.missing(rtx) is None, f"{use.where}: no {'.'.join(use.chain)}"


def test_every_exempted_name_is_used():
    used = {name for use in uses("export/engine_job.py") for name in use.chain}
    assert used >= RTX_ONLY


def test_a_misspelt_name_is_found(rtx, tmp_path):
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
