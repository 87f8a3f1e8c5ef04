"""The model needs PyTorch: without it, nothing here can be tested."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    """Give transformers, while our folder `kernels` cannot pass for the package it looks for."""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", elsewhere)
        yield pytest.importorskip("transformers", reason="transformers is not installed")
