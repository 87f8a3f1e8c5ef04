"""TensorRT's ahead-of-time launch, imitated on the CPU: the plugin's PTX, arguments and grid.

That TensorRT is handed these is in `tests/contract/test_aot.py`.
"""

from dataclasses import replace

import msgspec
import pytest

from tests.selftest.faults import QUICK, faults_of
from uino_deploy import ptx
from uino_deploy.config import PRESETS
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.targets import DTYPES
from uino_deploy.kernels.plugins.library import OPERATORS, Kernel
from uino_deploy.selftest.cases import CORRELATION, SCAN, ragged_cases
from uino_deploy.selftest.operators import compare, execute_ptx

CASES = ragged_cases(PRESETS.values())


def quick(operator):
    """The case that a kernel of `quick_kernels` computes."""
    return next(
        case
        for case in CASES
        for config in case.operator.configurations(case.attributes, case.shapes)[:1]
        if case.operator is operator and f"{operator.kernel}-{config}-fp16" in QUICK
    )


every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda one: one.name)


@every_operator
def test_the_launch_computes_the_operator_and_a_fault_is_found(quick_kernels, operator):
    case, made = quick(operator), []

    def run(launch, inputs, like):
        made.append(execute_ptx(launch, inputs, like))
        return made[0]

    assert compare(quick_kernels, case, "float16", run).holds
    for fault in faults_of(case):
        first, *rest = made[0]
        spoiled = [fault(first), *rest]
        assert not compare(quick_kernels, case, "float16", lambda *_, out=spoiled: out).holds


@every_operator
def test_a_grid_without_its_last_blocks_is_found(quick_kernels, operator):
    """A shot dropped, or a sequence, or some cells."""

    def run(launch, inputs, like):
        x, y, z = launch.grid
        short = (x, y, z - 1) if operator is CORRELATION else (x - 1, y, z)
        return execute_ptx(replace(launch, grid=short), inputs, like)

    with pytest.raises(ArithmeticError, match="unwritten"):
        compare(quick_kernels, quick(operator), "float16", run)


def test_numbers_in_another_order_are_found(quick_kernels):
    def run(launch, inputs, like):
        layers, shots, *others = launch.scalars
        n_query, channels, *others = others
        changed = [layers, shots, channels, n_query, *others]
        return execute_ptx(replace(launch, scalars=changed), inputs, like)

    try:
        measured = compare(quick_kernels, quick(CORRELATION), "float16", run)
    except (ptx.PtxFault, ArithmeticError):
        return
    assert not measured.holds


def test_a_kernel_that_needs_an_opt_in_is_refused(quick_kernels):
    def run(launch, inputs, like):
        greedy = msgspec.structs.replace(launch.kernel.record, shared_bytes=49153)
        kernel = Kernel(greedy, launch.kernel.folder)
        return execute_ptx(replace(launch, kernel=kernel), inputs, like)

    with pytest.raises(BuildError, match="needs 49153 bytes of shared memory"):
        compare(quick_kernels, quick(SCAN), "float16", run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.where)
def test_every_type_and_tiling(every_kernel, case, dtype):
    launch = every_kernel.launch(case.operator, case.attributes, case.shapes, dtype)
    assert (
        launch.kernel.record.config
        in case.operator.configurations(case.attributes, case.shapes)[:1]
    )
    assert compare(every_kernel, case, dtype, execute_ptx).holds
