"""Every name of TensorRT and cuda-python that our code uses exists in this version of them."""

import importlib

import pytest
import tensorrt as trt

from tests.contract.names import DRIVER, FILES, PLUGIN, RTX_ONLY, overrides, uses

pytestmark = pytest.mark.contract

VERSION = tuple(map(int, trt.__version__.split(".")[:2]))
HERE = [path for path, oldest in FILES.items() if oldest <= VERSION]
# TensorRT calls these, but its bindings do not list them on the class.
UNLISTED = {"clone", "destroy", "get_capability_interface", "log"}


@pytest.mark.parametrize("path", HERE)
def test_every_name_exists(path):
    found = uses(path)
    assert found
    for use in found:
        if not RTX_ONLY & set(use.chain):
            name = use.missing(importlib.import_module(use.module))
            assert name is None, f"{use.where}: {use.module} has no {'.'.join(use.chain)}"


@pytest.mark.parametrize("path", HERE)
def test_every_method_that_tensorrt_calls_exists(path):
    for bases, method, where in overrides(path):
        known = any(hasattr(getattr(trt, base), method) for base in bases)
        assert known or method in UNLISTED, f"{where}: {bases} have no {method}"


@pytest.mark.parametrize("name", ["Builder", "Runtime"])
def test_what_cpp_does_not_make_is_a_type_error(name):
    """The stub returns null for everything, as TensorRT does without a driver."""
    with pytest.raises(TypeError, match="factory function returned nullptr"):
        getattr(trt, name)(trt.Logger())


def test_plugins_have_a_layer_type_of_their_own():
    assert trt.LayerType.PLUGIN_V3 != trt.LayerType.PLUGIN_V2


def test_the_reader_sees_what_it_should():
    chains = {use.chain for use in uses("export/engine_job.py")}
    assert ("Builder",) in chains
    assert ("MemoryPoolType", "WORKSPACE") in chains
    assert ("INetworkDefinition", "num_layers") in chains
    assert ("ITimingCache", "serialize") in chains
    assert ("ParserError", "node_operator") in chains
    # Asked for with hasattr.
    assert not any("STRONGLY_TYPED" in chain for chain in chains)
    driver = {use.chain for use in uses("kernels/plugins/driver.py") if use.module == DRIVER}
    assert ("cuModuleLoadData",) in driver
    aot = {use.chain for use in uses("kernels/plugins/aot.py") if use.module == PLUGIN}
    assert ("aot_impl",) in aot
