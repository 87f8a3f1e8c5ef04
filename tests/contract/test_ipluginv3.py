"""The Python plugins on TensorRT's real classes, launching through the real cuda-python."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import tensorrt as trt

from tests.contract.fakes import Builder, Dims, Registry, described, fixed, symbolic
from tests.kernels.plugins.folders import (
    CORRELATION,
    EPILOGUE,
    MLP,
    PROLOGUE,
    SCAN,
    correlation_shapes,
    scan_shapes,
    volume_shapes,
    write_folder,
)
from uino_deploy.errors import BuildError, DependencyError
from uino_deploy.kernels import plugins
from uino_deploy.kernels.plugins import driver, ipluginv3
from uino_deploy.kernels.plugins.library import OPERATORS, Library

pytestmark = pytest.mark.contract

GRID = {"height": 7, "width": 8, "pool": 3}
CASES = [
    (CORRELATION, GRID, correlation_shapes(2, 5, 6, 300, 64, (7, 8), sets=1)),
    (SCAN, {}, scan_shapes(2000, 30, 31)),
    (PROLOGUE, {"plane": 1}, volume_shapes(PROLOGUE)),
    (EPILOGUE, {"plane": 0}, volume_shapes(EPILOGUE)),
    (MLP, {}, volume_shapes(MLP, width=64)),
]
OUTPUTS = {
    CORRELATION: [[2, 5, 6, 300, 9]],
    SCAN: [[2000, 30, 31, 32]],
    PROLOGUE: [[30, 4, 2, 32], [30, 4, 2, 4, 16]],
    EPILOGUE: [[2, 3, 5, 4, 2, 32]],
    MLP: [[2, 3, 5, 4, 2, 32]],
}
HALF, FLOAT = trt.DataType.HALF, trt.DataType.FLOAT


@pytest.fixture
def registry(monkeypatch):
    fake = Registry()
    monkeypatch.setattr(trt, "get_plugin_registry", lambda: fake)
    monkeypatch.setattr(ipluginv3, "_creators", {})
    monkeypatch.setattr(plugins, "_taken", None)
    return fake


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "kernels")


@pytest.fixture
def library(folder):
    return Library.open(folder, "sm_87")


def make(registry, operator, attributes):
    """Make a plugin as TensorRT does: through its creator, from fields."""
    creator = registry.get_creator(operator.name, "1", "uino")
    assert [field.name for field in creator.field_names] == list(operator.attributes)
    keep = [np.array([v], np.int32) for v in attributes.values()]
    fields = [
        trt.PluginField(name, value, trt.PluginFieldType.INT32)
        for name, value in zip(attributes, keep, strict=True)
    ]
    collection = trt.PluginFieldCollection(fields)
    return creator.create_plugin("node", collection, trt.TensorRTPhase.BUILD)


def types(operator, own=HALF):
    spelled = {"float32": FLOAT, "float16": own}
    return [spelled[name] for name in operator.types("float16")]


def descs(operator, attributes, shapes):
    outputs = operator.sizes(attributes, shapes)
    pairs = zip([*shapes.values(), *outputs], types(operator), strict=True)
    return [described(shape, dtype) for shape, dtype in pairs]


def prepared(registry, folder, operator, attributes, shapes):
    assert plugins.register_plugins("sm_87", folder, "ipluginv3") == "ipluginv3"
    plugin = make(registry, operator, attributes)
    both, count = [d.desc for d in descs(operator, attributes, shapes)], len(operator.inputs)
    plugin.on_shape_change(both[:count], both[count:])
    return plugin


def test_each_is_registered_once(registry, folder):
    for _ in range(2):
        plugins.register_plugins("sm_87", folder, "ipluginv3")
    assert sorted(registry.creators) == [(name, "1", "uino") for name in sorted(OPERATORS)]


def test_a_taken_name_is_an_error(registry, folder, library):
    registry.creators["Correlation4d", "1", "uino"] = None
    with pytest.raises(BuildError, match="registry refuses uino::Correlation4d"):
        plugins.register_plugins("sm_87", folder, "ipluginv3")


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CASES)
def test_attributes_survive_serialization_and_cloning(
    registry, folder, operator, attributes, shapes
):
    plugin = prepared(registry, folder, operator, attributes, shapes)
    copy = plugin.clone().attach_to_context(None)
    assert copy is not plugin
    for one in (plugin, copy):
        assert one.attributes == attributes
        assert (one.plugin_name, one.plugin_version) == (operator.name, "1")
        assert (one.plugin_namespace, one.num_outputs) == ("uino", len(operator.outputs))
        for capability in trt.PluginCapabilityType.__members__.values():
            assert one.get_capability_interface(capability) is one
        fields = one.get_fields_to_serialize()
        creator = registry.get_creator(operator.name, "1", "uino")
        again = creator.create_plugin("node", fields, trt.TensorRTPhase.RUNTIME)
        assert again.attributes == attributes


def test_a_missing_attribute(registry, folder):
    plugins.register_plugins("sm_87", folder, "ipluginv3")
    with pytest.raises(BuildError, match="Correlation4d node: no attribute width, pool"):
        make(registry, CORRELATION, {"height": 7})


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CASES)
def test_the_outputs(library, operator, attributes, shapes, monkeypatch):
    monkeypatch.setattr(trt, "DimsExprs", Dims)
    plugin = ipluginv3.KernelPlugin(operator, attributes, library)
    kinds = plugin.get_output_data_types(types(operator)[: len(operator.inputs)])
    assert kinds == [HALF] * len(operator.outputs)
    found = plugin.get_output_shapes(symbolic(shapes), [], Builder())
    values = [[d.value for d in dims] for dims in found]
    assert values == OUTPUTS[operator]


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CASES)
def test_formats(library, operator, attributes, shapes):
    plugin = ipluginv3.KernelPlugin(operator, attributes, library)
    good = descs(operator, attributes, shapes)
    count = len(operator.inputs)
    both = range(count + len(operator.outputs))
    assert all(plugin.supports_format_combination(i, good, count) for i in both)
    for position in both:
        bad = descs(operator, attributes, shapes)
        wrong = FLOAT if good[position].desc.type == HALF else HALF
        if position:
            bad[position].desc.type = wrong
            assert bad[position].desc.type == wrong
            assert not plugin.supports_format_combination(position, bad, count)
        bad[position].desc.type = good[position].desc.type
        bad[position].desc.format = trt.TensorFormat.HWC
        assert not plugin.supports_format_combination(position, bad, count)
    strange = descs(operator, attributes, shapes)
    strange[0].desc.type = trt.DataType.INT32
    assert not plugin.supports_format_combination(0, strange, count)


class Driver:
    """The calls that reached the stub of CUDA's driver."""

    def __init__(self, operator):
        self.library = ctypes.CDLL("libcuda.so.1")
        sizes = [8 if p.pointer else 4 for p in operator.parameters("float16")]
        array = (ctypes.c_int * 32).in_dll(self.library, "stub_sizes")
        array[: len(sizes)] = sizes
        self.count = len(sizes)
        ctypes.c_int.in_dll(self.library, "stub_parameters").value = self.count

    def number(self, name):
        return ctypes.c_int.in_dll(self.library, name)

    def values(self):
        values = (ctypes.c_uint64 * 32).in_dll(self.library, "stub_values")
        return list(values)[: self.count]

    def dims(self):
        return list((ctypes.c_uint * 7).in_dll(self.library, "stub_dims"))

    def text(self, name, size):
        return (ctypes.c_char * size).in_dll(self.library, name).value


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CASES)
def test_a_launch_reaches_the_driver(registry, folder, operator, attributes, shapes, monkeypatch):
    monkeypatch.setattr(driver, "_functions", {})
    stub = Driver(operator)
    modules, launches = stub.number("stub_modules").value, stub.number("stub_launches").value
    plugin = prepared(registry, folder, operator, attributes, shapes)
    context = plugin.attach_to_context(None)
    both = [d.desc for d in descs(operator, attributes, shapes)]
    context.on_shape_change(both[: len(operator.inputs)], [fixed((1,), HALF)])
    # Loaded when shapes are set, once for plugin and context; nothing is launched yet.
    assert stub.number("stub_modules").value == modules + 1
    assert stub.number("stub_launches").value == launches
    assert stub.text("stub_image", 16).startswith(b"cubin of ")
    assert stub.text("stub_entry", 256) == f"{operator.kernel}_kernel".encode()

    high = 0x7F00_0000_0000
    inputs = [high + 256 * i for i in range(len(operator.inputs))]
    outputs = [high + 4096 * (i + 1) for i in range(len(operator.outputs))]
    context.enqueue([], [], inputs, outputs, 0, 0x5150)
    assert stub.number("stub_launches").value == launches + 1
    assert stub.number("stub_modules").value == modules + 1
    expected = Library.open(folder, "sm_87").launch(operator, attributes, shapes, "float16")
    assert stub.values() == [*inputs, *expected.scalars, *outputs]
    assert stub.dims() == [*expected.grid, expected.threads, 1, 1, 49152]
    assert ctypes.c_uint64.in_dll(stub.library, "stub_stream").value == 0x5150


def test_much_shared_memory_is_asked_for(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_functions", {})
    stub = Driver(SCAN)

    def enlarge(record):
        record["shared_bytes"] = 65536

    prepared(registry, write_folder(tmp_path, change=enlarge), *CASES[1])
    cuda = driver.bindings()
    attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert stub.number("stub_attribute").value == int(attribute)
    assert stub.number("stub_attribute_value").value == 65536


def test_a_cubin_that_the_driver_refuses(registry, folder, monkeypatch):
    monkeypatch.setattr(driver, "_functions", {})
    refuse = Driver(SCAN).number("stub_refuse_module")
    refuse.value = 1
    try:
        with pytest.raises(BuildError, match="driver returns CUDA_ERROR_NO_BINARY_FOR_GPU"):
            prepared(registry, folder, *CASES[1])
    finally:
        refuse.value = 0


def test_a_driver_too_old_for_the_cubins_is_named(registry, tmp_path):
    def assembled_by_13(record):
        record["assembler"], record["elf_abi"] = "13.4", 8

    kernels = write_folder(tmp_path, change=assembled_by_13)
    version = Driver(SCAN).number("stub_driver_version")
    assert plugins.register_plugins("sm_87", kernels, "ipluginv3") == "ipluginv3"
    version.value = 12060
    try:
        words = r"ELF ABI 8 \(ptxas 13\.4\), and the driver here is of CUDA 12\.6; install a driver"
        with pytest.raises(DependencyError, match=words):
            plugins.register_plugins("sm_87", kernels, "ipluginv3")
    finally:
        version.value = 13000


def test_enqueue_without_shapes(library):
    with pytest.raises(BuildError, match="enqueued before its shapes were set"):
        ipluginv3.KernelPlugin(SCAN, {}, library).enqueue([], [], [], [], 0, 0)


def test_a_process_with_plugins_ends_well():
    """The bindings of 10.3 crash after a plugin has been freed; ours are kept."""
    done = subprocess.run([sys.executable, "-S", "-c", _PROGRAM], check=False, timeout=60)
    assert done.returncode == 0


_PROGRAM = """
import gc
from uino_deploy.kernels.plugins.ipluginv3 import KernelPlugin
from uino_deploy.kernels.plugins.library import OPERATORS

for _ in range(100):
    KernelPlugin(OPERATORS["SelectiveScan2d"], {}, None).clone()
gc.collect()
"""
