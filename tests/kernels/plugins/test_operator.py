"""One description, three readers: ONNX schema, Triton kernel with its launcher, plugin."""

import inspect

import pytest
import torch

from tests.kernels.plugins.folders import (
    CORRELATION,
    EPILOGUE,
    MLP,
    PROLOGUE,
    SCAN,
    correlation_shapes,
    scan_shapes,
    volume_shapes,
)
from uino_deploy.config import UinoConfig
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler import shapes as model_shapes
from uino_deploy.kernels.compiler.variants import (
    correlation_variant,
    grid_of,
    scalars_of,
    scan_variant,
    variants_of,
    volume_variant,
)
from uino_deploy.kernels.correlation import onnx as correlation_onnx
from uino_deploy.kernels.correlation import triton_kernel as correlation_triton
from uino_deploy.kernels.epilogue import onnx as epilogue_onnx
from uino_deploy.kernels.epilogue import triton_kernel as epilogue_triton
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.kernels.mlp import onnx as mlp_onnx
from uino_deploy.kernels.mlp import triton_kernel as mlp_triton
from uino_deploy.kernels.plugins import names
from uino_deploy.kernels.prologue import onnx as prologue_onnx
from uino_deploy.kernels.prologue import triton_kernel as prologue_triton
from uino_deploy.kernels.selective_scan import onnx as scan_onnx
from uino_deploy.kernels.selective_scan import triton_kernel as scan_triton
from uino_deploy.selftest.cases import in_torch, listed

GRID = {"height": 7, "width": 8, "pool": 3}
CASES = [
    (CORRELATION, GRID, correlation_shapes(2, 3, 2, 140, 96, (7, 8), sets=1)),
    (CORRELATION, GRID | {"pool": 2}, correlation_shapes(3, 1, 4, 5, 16, (7, 8))),
    (SCAN, {}, scan_shapes(1, 17, 17, 32)),
    (SCAN, {}, scan_shapes(700, 2, 5, 64, rank=4)),
    (PROLOGUE, {"plane": 0}, volume_shapes(PROLOGUE)),
    (PROLOGUE, {"plane": 1}, volume_shapes(PROLOGUE)),
    (EPILOGUE, {"plane": 0}, volume_shapes(EPILOGUE)),
    (EPILOGUE, {"plane": 1}, volume_shapes(EPILOGUE, 1)),
    (MLP, {}, volume_shapes(MLP, width=64)),
]
IDS = ["broadcast", "batched", "parallel", "serial"]
IDS += [f"{name}-{plane}" for name in ("prologue", "epilogue") for plane in ("query", "support")]
IDS += ["mlp"]
SCHEMAS = {
    CORRELATION: correlation_onnx.SCHEMA,
    PROLOGUE: prologue_onnx.SCHEMA,
    SCAN: scan_onnx.SCHEMA,
    EPILOGUE: epilogue_onnx.SCHEMA,
    MLP: mlp_onnx.SCHEMA,
}
TRITON = {
    CORRELATION: correlation_triton,
    PROLOGUE: prologue_triton,
    SCAN: scan_triton,
    EPILOGUE: epilogue_triton,
    MLP: mlp_triton,
}
OPERATORS_BY_KERNEL = {operator.kernel: operator for operator in SCHEMAS}
every_operator = pytest.mark.parametrize("operator", SCHEMAS, ids=lambda one: one.name)


@every_operator
def test_the_onnx_schema_has_the_same_inputs_and_attributes(operator):
    schema = SCHEMAS[operator]
    assert schema.name == operator.name
    assert len(schema.inputs) == len(operator.inputs)
    for formal, tensor in zip(schema.inputs, operator.inputs, strict=True):
        assert formal.name.lower() == tensor.name
        assert formal.description.count(",") + 1 == tensor.rank
        assert (formal.type_str == "tensor(float)") == (tensor.dtype == "float32")
    more = {"channels"} if operator is PROLOGUE else set()  # which only the function reads
    assert set(schema.attributes) == {*operator.attributes, *more, *names.PLUGIN}
    for formal, tensor in zip(schema.outputs, operator.outputs, strict=True):
        assert formal.description.count(",") + 1 == tensor.rank


def test_the_nodes_name_the_plugins_namespace():
    assert names.PLUGIN == {"aot": 1, "plugin_namespace": DOMAIN, "plugin_version": names.VERSION}
    assert names.NAMESPACE == DOMAIN


@every_operator
def test_the_triton_kernel_takes_the_arguments_in_this_order(operator):
    kernel = getattr(TRITON[operator], f"{operator.kernel}_kernel")
    arguments = list(inspect.signature(kernel.fn).parameters)
    expected = [parameter.name for parameter in operator.parameters("float16")]
    assert arguments[: len(expected)] == expected
    # What follows is compile-time.
    assert all(name.isupper() for name in arguments[len(expected) :])


class Recorder:
    """Stands where the Triton kernel stands and keeps what it is launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.grid, self.arguments, self.options = grid, arguments, options

        return launch


def operands(operator, shapes):
    types = operator.types("float16")
    return [
        torch.ones(shapes[tensor.name], dtype=getattr(torch, dtype))
        for tensor, dtype in zip(operator.inputs, types, strict=False)
    ]


@pytest.mark.parametrize(("operator", "attributes", "shapes"), CASES, ids=IDS)
def test_the_launcher_launches_what_the_plugin_launches(operator, attributes, shapes, monkeypatch):
    module, recorder = TRITON[operator], Recorder()
    monkeypatch.setattr(module, f"{operator.kernel}_kernel", recorder)
    tensors = operands(operator, shapes)
    results = listed(getattr(module, operator.kernel)(*tensors, **attributes))

    constants = {k: v for k, v in recorder.options.items() if k.isupper()}
    x, y, z = (*recorder.grid, 1, 1)[:3]
    assert (x, y, z) == operator.blocks(attributes, constants, shapes)
    numbers = iter(operator.numbers(attributes, shapes))
    pointers = iter([*tensors, *results])
    for parameter, argument in zip(operator.parameters("float16"), recorder.arguments, strict=True):
        if parameter.pointer:
            assert argument is next(pointers)
            assert argument.dtype == getattr(torch, parameter.type)
        else:
            assert argument == next(numbers), parameter.name


@pytest.mark.parametrize(
    ("operator", "attributes", "shapes"),
    [*CASES[:2], (SCAN, {}, scan_shapes(2, 3, 5, 16)), *CASES[4:]],
)
def test_the_outputs_are_shaped_as_the_references(operator, attributes, shapes):
    expected = listed(in_torch(operator)(*operands(operator, shapes), **attributes))
    assert operator.sizes(attributes, shapes) == [tuple(each.shape) for each in expected]


@pytest.mark.parametrize(("batch", "shots"), [(1, 1), (4, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("preset", ["tiny", "vits14", "vitb14", "vitl14"])
def test_a_model_gets_the_kernels_and_grids_of_the_compiler(preset, batch, shots):
    config = UinoConfig.from_preset(preset)
    s = model_shapes.correlation_shape(config, batch, shots)
    attributes = {"height": s.height, "width": s.width, "pool": s.pool}
    grid = (s.height, s.width)
    shapes = correlation_shapes(batch, shots, s.layers, s.n_query, s.channels, grid)
    variant = correlation_variant(s, "float16", 87)
    assert CORRELATION.configurations(attributes, shapes) == [variant.config]
    assert CORRELATION.numbers(attributes, shapes) == scalars_of(s)
    assert CORRELATION.blocks(attributes, variant.constants, shapes) == grid_of(variant, s, 87)
    for s in model_shapes.scan_shapes(config, batch, shots):
        shapes = scan_shapes(s.sequences, s.height, s.width, s.channels, s.states, s.rank)
        variant = scan_variant(s, "float16")
        assert SCAN.configurations({}, shapes)[0] == variant.config
        assert SCAN.numbers({}, shapes) == scalars_of(s)
        assert SCAN.blocks({}, variant.constants, shapes) == grid_of(variant, s, 87)
    for s in model_shapes.volume_shapes(config, batch, shots):
        operator = OPERATORS_BY_KERNEL[s.op]
        attributes = {"plane": s.plane} if operator.attributes else {}
        cells = (s.shots, s.query, s.query, s.support, s.support)
        shapes = volume_shapes(operator, s.plane, cells, s.channels, s.width)
        variant = volume_variant(s, "float16", 87)
        assert operator.configurations(attributes, shapes) == [variant.config]
        assert operator.numbers(attributes, shapes) == scalars_of(s)
        assert operator.blocks(attributes, variant.constants, shapes) == grid_of(variant, s, 87)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_compiler_compiles_what_is_described(dtype):
    """The compiler reads a variant's parameters from the kernel, the plugins from here."""
    config = UinoConfig.from_preset("tiny")
    found = {variant.op: variant for variant in variants_of(config, 87, [dtype])}
    assert set(found) == set(OPERATORS_BY_KERNEL)
    for op, variant in found.items():
        assert variant.parameters == OPERATORS_BY_KERNEL[op].parameters(dtype)


@pytest.mark.parametrize(
    ("operator", "attributes", "shapes", "words"),
    [
        (CORRELATION, GRID | {"pool": 9}, correlation_shapes(grid=(7, 8)), "pool 9 is not 1 to 8"),
        (CORRELATION, GRID, correlation_shapes(grid=(7, 7)), "support is"),
        (CORRELATION, GRID, correlation_shapes(3, grid=(7, 8), sets=2), r"not \(1 or 3"),
        (
            CORRELATION,
            GRID,
            correlation_shapes(grid=(7, 8), channels=40),
            "channels is 40, but the kernels take multiples of 16",
        ),
        (SCAN, {}, scan_shapes() | {"skip": (4, 31)}, "skip is"),
        (SCAN, {}, scan_shapes() | {"packed": (3, 4, 5, 4, 9)}, "packed is"),
        (PROLOGUE, {"plane": 2}, volume_shapes(PROLOGUE), "plane 2 is neither"),
        (
            PROLOGUE,
            {"plane": 0},
            volume_shapes(PROLOGUE) | {"conv_weight": (32, 9)},
            "conv_weight is",
        ),
        (EPILOGUE, {"plane": 0}, volume_shapes(EPILOGUE, 1), "y is"),
        (MLP, {}, volume_shapes(MLP) | {"bias1": (32,)}, "bias1 is"),
    ],
)
def test_what_no_kernel_computes_is_refused(operator, attributes, shapes, words):
    with pytest.raises(BuildError, match=words):
        operator.numbers(attributes, shapes)
