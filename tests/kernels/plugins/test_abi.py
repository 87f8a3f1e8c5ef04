"""The PTX that a plugin ships: its parameters are those described, and launched as the plugin
would launch it, the executor computes the operator.
"""

import math
import re
from dataclasses import replace

import numpy as np
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
from tests.kernels.presets import preset_variants
from uino_deploy import ptx
from uino_deploy.kernels.compiler.build import compile_target, write
from uino_deploy.kernels.compiler.targets import target
from uino_deploy.kernels.plugins.library import OPERATORS, Library
from uino_deploy.selftest.cases import in_torch, listed
from uino_deploy.tolerances import OPERATOR

SIZES = {"u64": 8, "b64": 8, "u32": 4, "b32": 4, "s32": 4}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The float16 kernels of the smallest model, written to disk and read as a plugin reads."""
    folder = tmp_path_factory.mktemp("kernels")
    names = [v.name for v in preset_variants(87, ["tiny"]) if v.dtype == "float16"]
    names.append("selective_scan2d-parallel-d16n4r2p16-fp16")  # the smallest model's are serial
    write(compile_target(target("sm_87", "12.6"), ["tiny", "vits14"], names), folder)
    return Library.open(folder, "sm_87")


def kernels(library):
    half = "float16"
    yield CORRELATION, library.find(CORRELATION, {"pool": 2}, {}, half)
    for sequences in (1, 10_000):
        shapes = scan_shapes(sequences, 30, 30, channels=16)
        yield SCAN, library.find(SCAN, {}, shapes, half)
    for operator, attributes in ((PROLOGUE, {"plane": 0}), (EPILOGUE, {"plane": 1}), (MLP, {})):
        shapes = volume_shapes(operator, 1, VOLUME, 16, 32 if operator is MLP else 16)
        yield operator, library.find(operator, attributes, shapes, half)


def entry_parameters(text):
    """Return (type, is a pointer) of each parameter of the one entry, as the PTX declares it."""
    (declared,) = re.findall(r"\.visible \.entry \w+\(([^)]*)\)", text)
    found = re.findall(r"\.param \.(\w+)( \.ptr[ .\w]*)? \w+", declared)
    return [(kind, bool(pointer)) for kind, pointer in found]


def test_the_ptx_declares_what_is_described(library):
    found = list(kernels(library))
    assert len({kernel.record.name for _, kernel in found}) == 6
    for operator, kernel in found:
        declared = entry_parameters(kernel.ptx())
        described = operator.parameters(kernel.record.dtype)
        assert [pointer for _, pointer in declared] == [p.pointer for p in described]
        assert [SIZES[kind] for kind, _ in declared] == [8 if p.pointer else 4 for p in described]
        assert f".entry {kernel.record.entry}(" in kernel.ptx()
        assert f".reqntid {kernel.record.block[0]}" in kernel.ptx()
        assert kernel.record.plugin


def random_inputs(operator, shapes):
    generator = torch.Generator().manual_seed(5)
    types = operator.types("float16")
    made = {}
    for tensor, dtype in zip(operator.inputs, types, strict=False):
        values = torch.randn(shapes[tensor.name], generator=generator)
        if tensor.name == "a":
            values = -4 * values.abs()
        made[tensor.name] = values.to(getattr(torch, dtype))
    return made


def relative_error(got, expected):
    got = torch.from_numpy(got).double()
    return ((got - expected).norm() / expected.norm()).item()


GRID = {"height": 5, "width": 7, "pool": 2}
VOLUME = (2, 3, 5, 4, 2)
CASES = {
    "one-shot": (CORRELATION, GRID, correlation_shapes(1, 1, 2, 140, 32, (5, 7))),
    "batch-and-shots": (CORRELATION, GRID, correlation_shapes(2, 3, 2, 33, 48, (5, 7), sets=1)),
    "a-support-each": (CORRELATION, GRID, correlation_shapes(3, 2, 1, 20, 16, (5, 7))),
    "windows-in-several-tiles": (
        CORRELATION,
        {"height": 13, "width": 12, "pool": 2},
        correlation_shapes(1, 1, 1, 17, 16, (13, 12)),
    ),
    "parallel": (SCAN, {}, scan_shapes(2, 15, 18, 16)),
    "parallel-one-sequence": (SCAN, {}, scan_shapes(1, 16, 17, 16)),
    "serial": (SCAN, {}, scan_shapes(19, 2, 5, 16)),
    "serial-one-sequence": (SCAN, {}, scan_shapes(1, 3, 2, 16)),
    "prologue-query": (PROLOGUE, {"plane": 0}, volume_shapes(PROLOGUE, 0, VOLUME, 16)),
    "prologue-support": (PROLOGUE, {"plane": 1}, volume_shapes(PROLOGUE, 1, VOLUME, 16)),
    "epilogue-query": (EPILOGUE, {"plane": 0}, volume_shapes(EPILOGUE, 0, VOLUME, 16)),
    "epilogue-support": (EPILOGUE, {"plane": 1}, volume_shapes(EPILOGUE, 1, VOLUME, 16)),
    "mlp": (MLP, {}, volume_shapes(MLP, 0, VOLUME, 16, 32)),
}


def error_of(case, launch):
    """Execute a launch; return the error of its output against the float64 reference."""
    operator, attributes, shapes = CASES[case]
    inputs = random_inputs(operator, shapes)
    outputs = [ptx.poisoned(size, np.float16) for size in operator.sizes(attributes, shapes)]
    ptx.launch(
        ptx.parse(launch.kernel.ptx()),
        grid=launch.grid,
        block=launch.threads,
        shared=launch.kernel.record.shared_bytes,
        arguments=[*(t.numpy() for t in inputs.values()), *launch.scalars, *outputs],
    )
    exact = in_torch(operator)(*(t.double() for t in inputs.values()), **attributes)
    if not all(out.complete for out in outputs):
        return math.inf
    pairs = zip(outputs, listed(exact), strict=True)
    return max(relative_error(out.array, wanted) for out, wanted in pairs)


def launch_of(case, library):
    operator, attributes, shapes = CASES[case]
    return library.launch(operator, attributes, shapes, "float16")


@pytest.mark.parametrize("case", CASES)
def test_the_plugins_launch_computes_the_operator(library, case):
    assert error_of(case, launch_of(case, library)) <= OPERATOR["float16"].relative_l2


@pytest.mark.parametrize(
    ("case", "first", "second"), [("one-shot", 4, 5), ("batch-and-shots", 0, 1), ("serial", 1, 2)]
)
def test_two_numbers_in_the_wrong_order_are_noticed(library, case, first, second):
    launch = launch_of(case, library)
    swapped = list(launch.scalars)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert swapped != launch.scalars
    try:
        error = error_of(case, replace(launch, scalars=swapped))
    except ptx.PtxFault:  # outside an array
        return
    assert error > 10 * OPERATOR["float16"].relative_l2


@pytest.mark.parametrize(
    ("case", "axis"),
    [("windows-in-several-tiles", 0), ("batch-and-shots", 1), ("batch-and-shots", 2)],
)
def test_a_grid_that_is_too_small_is_noticed(library, case, axis):
    launch = launch_of(case, library)
    grid = list(launch.grid)
    grid[axis] -= 1
    assert error_of(case, replace(launch, grid=tuple(grid))) == math.inf


def test_every_operator_is_executed():
    assert {operator.name for operator, _, _ in CASES.values()} == set(OPERATORS)
