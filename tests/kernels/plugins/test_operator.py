"""One description, three readers: ONNX schema, Triton kernel with its launcher, plugin."""

import inspect

import pytest
import torch

from tests.kernels.plugins.folders import CORRELATION, SCAN, correlation_shapes, scan_shapes
from uino_deploy.config import UinoConfig
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler import shapes as model_shapes
from uino_deploy.kernels.compiler.variants import (
    correlation_variant,
    grid_of,
    scalars_of,
    scan_variant,
)
from uino_deploy.kernels.correlation import naive as correlation_naive
from uino_deploy.kernels.correlation import onnx as correlation_onnx
from uino_deploy.kernels.correlation import triton_kernel as correlation_triton
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.kernels.plugins import names
from uino_deploy.kernels.selective_scan import naive as scan_naive
from uino_deploy.kernels.selective_scan import onnx as scan_onnx
from uino_deploy.kernels.selective_scan import triton_kernel as scan_triton

GRID = {"height": 7, "width": 8, "pool": 3}
CASES = [
    (CORRELATION, GRID, correlation_shapes(2, 3, 2, 140, 96, (7, 8), sets=1)),
    (CORRELATION, GRID | {"pool": 2}, correlation_shapes(3, 1, 4, 5, 16, (7, 8))),
    (SCAN, {}, scan_shapes(1, 9, 11, 32)),
    (SCAN, {}, scan_shapes(700, 2, 5, 64, rank=4)),
]
IDS = ["broadcast", "batched", "parallel", "serial"]


@pytest.mark.parametrize(
    ("operator", "schema"), [(CORRELATION, correlation_onnx.SCHEMA), (SCAN, scan_onnx.SCHEMA)]
)
def test_the_onnx_schema_has_the_same_inputs_and_attributes(operator, schema):
    assert schema.name == operator.name
    assert len(schema.inputs) == len(operator.inputs)
    for formal, tensor in zip(schema.inputs, operator.inputs, strict=True):
        assert formal.name.lower() == tensor.name
        assert formal.description.count(",") + 1 == tensor.rank
        assert (formal.type_str == "tensor(float)") == (tensor.dtype == "float32")
    assert set(schema.attributes) == {*operator.attributes, *names.PLUGIN}
    for formal, tensor in zip(schema.outputs, operator.outputs, strict=True):
        assert formal.description.count(",") + 1 == tensor.rank


def test_the_nodes_name_the_plugins_namespace():
    assert names.PLUGIN == {"aot": 1, "plugin_namespace": DOMAIN, "plugin_version": names.VERSION}
    assert names.NAMESPACE == DOMAIN


@pytest.mark.parametrize(
    ("operator", "kernel"),
    [
        (CORRELATION, correlation_triton.correlation4d_kernel),
        (SCAN, scan_triton.selective_scan2d_kernel),
    ],
)
def test_the_triton_kernel_takes_the_arguments_in_this_order(operator, kernel):
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
    module = correlation_triton if operator is CORRELATION else scan_triton
    recorder = Recorder()
    monkeypatch.setattr(module, f"{operator.kernel}_kernel", recorder)
    tensors = operands(operator, shapes)
    out = getattr(module, operator.kernel)(*tensors, **attributes)

    constants = {k: v for k, v in recorder.options.items() if k.isupper()}
    assert recorder.grid == operator.blocks(attributes, constants, shapes)
    numbers = iter(operator.numbers(attributes, shapes))
    pointers = iter([*tensors, out])
    for parameter, argument in zip(operator.parameters("float16"), recorder.arguments, strict=True):
        if parameter.pointer:
            assert argument is next(pointers)
            assert argument.dtype == getattr(torch, parameter.type)
        else:
            assert argument == next(numbers), parameter.name


@pytest.mark.parametrize(
    ("operator", "attributes", "shapes"),
    [*CASES[:2], (SCAN, {}, scan_shapes(2, 3, 5, 16))],
)
def test_the_output_is_shaped_as_the_references(operator, attributes, shapes):
    naive = correlation_naive if operator is CORRELATION else scan_naive
    expected = getattr(naive, operator.kernel)(*operands(operator, shapes), **attributes).shape
    assert operator.sizes(attributes, shapes) == [tuple(expected)]


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
    ],
)
def test_what_no_kernel_computes_is_refused(operator, attributes, shapes, words):
    with pytest.raises(BuildError, match=words):
        operator.numbers(attributes, shapes)
