"""Runs Triton's kernels in its interpreter, and creates slow fixtures once for all workers."""

import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pluggy
import pytest

# What the runtime keeps for a user is not the developer's own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="uino-deploy-state-")
# The switch must be set before the kernels are decorated.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of targets that promise to run what they name."""
    parser.addoption("--no-skips", action="store_true", help="Fail the tests that would skip.")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pluggy.Result, None]:
    """With --no-skips, turn a skipped test into a failed one that says why it did not run."""
    report = (yield).get_result()
    if report.skipped and item.config.getoption("--no-skips"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"NOT RUN: {why}"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable], Path]:
    """Return a function that makes a file or folder once for all processes of a run.

    `made_once(name, make)` calls `make(path)` unless another worker has done so, and returns where
    the result lies. Every worker reads it: copy what a test changes.
    """
    from uino_deploy.workspace import locked

    root = tmp_path_factory.getbasetemp()
    # Each worker of xdist has a folder of its own inside the run's.
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made-once"
    root.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        lock, path = root / f"{name}.lock", root / name
        lock.mkdir(exist_ok=True)
        with locked(lock):
            if not path.exists():
                unfinished = lock / name
                make(unfinished)
                unfinished.rename(path)
        return path

    return once


@pytest.fixture
def cudart(monkeypatch):
    """Put a CUDA runtime in numpy in cuda-python's place; return it."""
    from tests.runtime.fake_cuda import FakeCudart
    from uino_deploy.runtime import cuda_memory

    fake = FakeCudart()
    monkeypatch.setattr(cuda_memory, "import_cudart", lambda: fake)
    return fake
