"""The quick-deployable plugins in the bindings' own machinery: registered, described, tuned, built.

What TensorRT does with the result needs a GPU; what it is handed is checked here.
"""

import numpy as np
import pytest
import tensorrt as trt

from tests.contract.fakes import Builder, Dims, Registry, Symbol, described, symbolic
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
from uino_deploy.kernels.plugins.library import OPERATORS, Library

pytestmark = pytest.mark.contract

VERSION = tuple(map(int, trt.__version__.split(".")[:3]))
HAS_AOT = VERSION >= (10, 9)
NUMPY_2_4 = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4)
# FACTS of the bindings: an int attribute is int(array of one element) up to 11.2.0.
WORKS = HAS_AOT and not (NUMPY_2_4 and VERSION < (11, 2, 1))
HALF, FLOAT = trt.DataType.HALF, trt.DataType.FLOAT
GRID = {"height": 7, "width": 8, "pool": 3}


def test_this_tensorrt_is_taken_or_refused_for_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_taken", None)
    if not HAS_AOT:
        assert plugins.route_for(trt.__version__) == "ipluginv3"
        assert not hasattr(trt, "QuickPluginCreationRequest")
    elif not WORKS:
        with pytest.raises(DependencyError, match=r"pip install 'numpy<2\.4'"):
            plugins.register_plugins("sm_90", write_folder(tmp_path, "sm_90"))
        with pytest.raises(TypeError):
            int(trt.PluginField("n", np.array([1]), trt.PluginFieldType.INT32).data)
    else:
        assert plugins.route_for(trt.__version__) == "aot"


# Registering happens once in a process, as in TensorRT itself.
@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    if not WORKS:
        pytest.skip("no quick-deployable plugins here")
    fake = Registry()
    patch = pytest.MonkeyPatch()
    patch.setattr(trt, "get_plugin_registry", lambda: fake)
    patch.setattr(plugins, "_taken", None)
    folder = write_folder(tmp_path_factory.mktemp("k"), "sm_90")
    assert plugins.register_plugins("sm_90", folder) == "aot"
    assert plugins.register_plugins("sm_90", folder) == "aot"
    fake.library = Library.open(folder, "sm_90")
    yield fake
    patch.undo()


def test_each_is_registered_with_their_attributes(registry):
    assert sorted(registry.creators) == [(name, "1", "uino") for name in sorted(OPERATORS)]
    for name, operator in OPERATORS.items():
        creator = registry.get_creator(name, "1", "uino")
        assert [field.name for field in creator.field_names] == list(operator.attributes)


def make(registry, operator, attributes):
    """Make a plugin as the ONNX parser does for a node with aot = 1."""
    creator = registry.get_creator(operator.name, "1", "uino")
    keep = [np.array([v], np.int32) for v in attributes.values()]
    fields = [
        trt.PluginField(name, value, trt.PluginFieldType.INT32)
        for name, value in zip(attributes, keep, strict=True)
    ]
    return creator.create_plugin(
        operator.name,
        "uino",
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )


class Setter(list):
    """Stands for ISymExprs: what the kernel's scalars are set to."""

    def __setattr__(self, name, value):
        assert name == "nbSymExprs"
        self[:] = [None] * value


class Launch:
    """Stands for the C++ launch parameters."""


class Scalar:
    """Stands for ISymExpr, which takes only TensorRT's own symbols."""

    def __init__(self, expression):
        import tensorrt.plugin as trtp

        assert isinstance(expression, trtp.SymInt32)
        self.expr = expression._expr


CASES = {
    "correlation": (CORRELATION, GRID, correlation_shapes(2, 5, 6, 300, 64, (7, 8), sets=1), HALF),
    "correlation-float32": (CORRELATION, GRID, correlation_shapes(grid=(7, 8)), FLOAT),
    "scan-serial": (SCAN, {}, scan_shapes(2000, 30, 31), HALF),
    "scan-parallel": (SCAN, {}, scan_shapes(3, 30, 31), HALF),
    "prologue": (PROLOGUE, {"plane": 0}, volume_shapes(PROLOGUE), HALF),
    "prologue-support": (PROLOGUE, {"plane": 1}, volume_shapes(PROLOGUE), HALF),
    "epilogue": (EPILOGUE, {"plane": 0}, volume_shapes(EPILOGUE), HALF),
    "mlp": (MLP, {}, volume_shapes(MLP, width=64), FLOAT),
}


def build(registry, monkeypatch, operator, attributes, shapes, dtype, least=None):
    """Lead a plugin through a build as TensorRT does; return it and what it set."""
    import tensorrt.plugin as trtp

    monkeypatch.setattr(trt, "IDimensionExpr", Symbol)
    monkeypatch.setattr(trt, "DimsExprs", Dims)
    module = __import__("tensorrt.plugin._tensor", fromlist=["x"])
    monkeypatch.setattr(module, "SymExprImpl", Scalar)
    plugin = make(registry, operator, attributes)
    own = {"float32": FLOAT, "float16": dtype}
    dtypes = [own[name] for name in operator.types("float16")]
    ranks, count = [len(shape) for shape in shapes.values()], len(shapes)
    assert plugin.get_output_data_types(dtypes[:count], ranks) == [dtype] * len(operator.outputs)
    found = plugin.get_output_shapes(symbolic(shapes), [], Builder())
    outputs = operator.sizes(attributes, shapes)
    assert [tuple(d.value for d in dims) for dims in found] == outputs

    least = least or shapes
    sizes = [*shapes.items(), *((f"out{i}", size) for i, size in enumerate(outputs))]
    in_out = [
        described(shape, kind, least.get(name))
        for (name, shape), kind in zip(sizes, dtypes, strict=True)
    ]
    offered = plugin.get_supported_format_combinations(in_out, count)
    assert [one.type for one in offered] == dtypes
    assert {one.format for one in offered} == {trt.TensorFormat.LINEAR}
    plugin.configure_plugin(in_out[:count], in_out[count:])
    (tactic,) = plugin.get_valid_tactics()
    plugin.set_tactic(tactic)

    launch, scalars = Launch(), Setter()
    plugin.get_launch_params(symbolic(shapes), in_out, count, launch, scalars, Builder())
    name, ptx = plugin.get_kernel(
        [d.desc for d in in_out[:count]], [d.desc for d in in_out[count:]]
    )
    assert trtp.SymInt32
    return launch, scalars, name, ptx


@pytest.mark.parametrize("case", CASES)
def test_a_build(registry, monkeypatch, case):
    operator, attributes, shapes, dtype = CASES[case]
    launch, scalars, name, ptx = build(registry, monkeypatch, operator, attributes, shapes, dtype)
    element = {HALF: "float16", FLOAT: "float32"}[dtype]
    expected = registry.library.launch(operator, attributes, shapes, element)
    # The symbols are worth what the other plugin, and the test that executes the PTX, launch.
    grid = (launch.grid_x.expr.value, launch.grid_y.expr.value, launch.grid_z.expr.value)
    assert grid == expected.grid
    assert (launch.block_x.expr.value, launch.shared_mem.expr.value) == (expected.threads, 49152)
    assert (launch.block_y.expr.value, launch.block_z.expr.value) == (1, 1)
    assert [scalar.expr.value for scalar in scalars] == expected.scalars
    assert name == f"{operator.kernel}_kernel"
    assert ptx.decode() == expected.kernel.ptx()


def test_dynamic_dimensions_stay_symbols(registry, monkeypatch):
    shapes = correlation_shapes(4, 5, 6, 300, 64, (7, 8), sets=1)
    least = correlation_shapes(1, 1, 6, 300, 64, (7, 8), sets=1)
    launch, scalars, *_ = build(registry, monkeypatch, CORRELATION, GRID, shapes, HALF, least)
    assert launch.grid_z.expr.text == "(query[0] * support[1])"
    assert launch.grid_x.expr.text == "(ceil(query[2] / 128) * 1)"
    assert [scalar.expr.text for scalar in scalars] == [
        *("query[1]", "support[1]", "query[2]", "query[3]", "7", "8"),
        *("support[0]", "weight[0]"),
    ]
    shapes, least = scan_shapes(2000, 30, 31), scan_shapes(1, 30, 31)
    launch, *_ = build(registry, monkeypatch, SCAN, {}, shapes, HALF, least)
    assert launch.grid_x.expr.text == "ceil(x[0] / 4)"
    shapes = volume_shapes(PROLOGUE, cells=(8, 3, 5, 4, 2))
    least = volume_shapes(PROLOGUE, cells=(1, 3, 5, 4, 2))
    launch, *_ = build(registry, monkeypatch, PROLOGUE, {"plane": 0}, shapes, HALF, least)
    cells = "((volume[0] * (volume[1] * volume[2])) * (volume[3] * volume[4]))"
    assert launch.grid_x.expr.text == f"ceil({cells} / 64)"


def test_a_build_of_what_no_kernel_computes(registry, monkeypatch):
    shapes = correlation_shapes(grid=(7, 8), channels=40)
    with pytest.raises(BuildError, match="channels is 40, but the kernels take multiples of 16"):
        build(registry, monkeypatch, CORRELATION, GRID, shapes, HALF)
    with pytest.raises(BuildError, match="no kernel computes in"):
        build(
            registry,
            monkeypatch,
            CORRELATION,
            GRID,
            correlation_shapes(grid=(7, 8)),
            trt.DataType.INT32,
        )
