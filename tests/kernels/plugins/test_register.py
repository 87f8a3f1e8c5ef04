"""The plugin route of each TensorRT version, and one-line errors if it is blocked."""

import sys
from types import ModuleType

import numpy as np
import pytest

from tests.kernels.plugins.folders import write_folder
from uino_deploy.errors import BuildError, DependencyError
from uino_deploy.kernels import plugins


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(plugins, "_taken", None)


def pretend(monkeypatch, version, numpy="2.3.5"):
    """Put a TensorRT in place whose plugins only note what they are registered with."""
    fake = ModuleType("tensorrt")
    fake.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(np, "__version__", numpy)
    registered = []
    for route in plugins.OLDEST:
        module = ModuleType(route)
        module.register = lambda library, route=route: registered.append((route, library.folder))
        monkeypatch.setitem(sys.modules, f"uino_deploy.kernels.plugins.{route}", module)
    driver = ModuleType("driver")
    driver.check_driver = lambda _kernels: None
    monkeypatch.setitem(sys.modules, "uino_deploy.kernels.plugins.driver", driver)
    return registered


@pytest.mark.parametrize(
    ("version", "route"),
    [
        ("10.3.0", "ipluginv3"),
        ("10.8.0.43", "ipluginv3"),
        ("10.9.0.34", "aot"),
        ("10.16.1.11", "aot"),
        ("11.4.0.106", "aot"),
    ],
)
def test_the_version_decides(monkeypatch, tmp_path, version, route):
    registered = pretend(monkeypatch, version)
    folder = write_folder(tmp_path)
    assert plugins.register_plugins("sm_87", folder) == route
    assert plugins.register_plugins("sm_87", folder) == route
    assert registered == [(route, folder)] * 2


def test_a_route_may_be_asked_for(monkeypatch, tmp_path):
    registered = pretend(monkeypatch, "11.4.0.106")
    assert plugins.register_plugins("sm_87", write_folder(tmp_path), "ipluginv3") == "ipluginv3"
    with pytest.raises(BuildError, match="has registered its plugins by ipluginv3, not aot"):
        plugins.register_plugins("sm_87", tmp_path, "aot")
    assert len(registered) == 1


@pytest.mark.parametrize(("version", "route"), [("10.3.0", "aot"), ("10.2.0", None)])
def test_too_old(monkeypatch, tmp_path, version, route):
    pretend(monkeypatch, version)
    with pytest.raises(DependencyError, match=f"TensorRT {version} has no plugins of kind"):
        plugins.register_plugins("sm_87", write_folder(tmp_path), route)


@pytest.mark.parametrize(
    ("version", "route", "numpy", "works"),
    [
        ("10.16.1.11", None, "2.4.0", False),
        ("11.2.0", None, "2.4.0", False),
        ("11.2.1.2", None, "2.4.0", True),
        ("10.16.1.11", None, "2.3.5", True),
        ("10.16.1.11", "ipluginv3", "2.4.0", True),
    ],
)
def test_numpy_2_4_breaks_older_bindings(monkeypatch, tmp_path, version, route, numpy, works):
    pretend(monkeypatch, version, numpy)
    write_folder(tmp_path)
    if works:
        assert plugins.register_plugins("sm_87", tmp_path, route)
    else:
        with pytest.raises(DependencyError, match=r"NumPy 2.4.0; pip install 'numpy<2.4'"):
            plugins.register_plugins("sm_87", tmp_path, route)


def test_no_kernels(monkeypatch, tmp_path):
    pretend(monkeypatch, "10.9.0.34")
    with pytest.raises(BuildError, match="no compiled kernels for sm_87; uino-deploy kernels"):
        plugins.register_plugins("sm_87", None)
    with pytest.raises(BuildError, match="has no kernels for sm_90"):
        plugins.register_plugins("sm_90", write_folder(tmp_path))


def test_no_tensorrt(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match="TensorRT cannot be imported"):
        plugins.register_plugins("sm_87", tmp_path)


def test_no_cuda_python(monkeypatch):
    from uino_deploy.kernels.plugins import driver

    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    driver.bindings.cache_clear()
    with pytest.raises(DependencyError, match="cuda-python is not installed"):
        driver.bindings()
