"""SelectiveScan2d's Triton kernel in Triton's interpreter, against float64 on the same inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.operands import scan_operands
from uino_deploy.kernels.selective_scan import naive
from uino_deploy.kernels.selective_scan.tiling import Tiling, tiling_for
from uino_deploy.kernels.selective_scan.triton_kernel import selective_scan2d
from uino_deploy.tolerances import OPERATOR

pytestmark = pytest.mark.usefixtures("poisoned")

# The shipped tilings hold 32 x 8 and 4 x 8 visits; the interpreter is quicker with fewer.
PARALLEL = Tiling(True, 4, 2, 16, 1)
SERIAL = Tiling(False, 4, 2, 16, 1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def operands(shape, dtype, seed=0):
    return scan_operands(shape, dtype, torch.Generator().manual_seed(seed))


def check(tensors, tiling):
    out = selective_scan2d(*tensors, tiling=tiling)
    expected = naive.selective_scan2d(*(t.double() for t in tensors))
    assert out.shape == expected.shape
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error <= OPERATOR[str(tensors[0].dtype).removeprefix("torch.")].relative_l2
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiling", [PARALLEL, SERIAL], ids=["parallel", "serial"])
def test_directions_and_types(dtype, tiling):
    check(operands((2, 3, 4, 5, 2, 2), dtype), tiling)


def test_the_shipped_parallel_tiling():
    tiling = tiling_for(1, 256, 16, 2)
    assert tiling.parallel
    check(operands((1, 16, 17, 16, 2, 2), torch.float16), tiling)


def test_the_shipped_serial_tiling():
    tiling = tiling_for(17, 6, 16, 2)
    assert not tiling.parallel
    check(operands((17, 2, 3, 16, 2, 2), torch.float16), tiling)


@pytest.mark.parametrize("tiling", [PARALLEL, SERIAL], ids=["parallel", "serial"])
def test_one_cell_one_channel_one_state(tiling):
    check(operands((1, 1, 1, 1, 1, 1), torch.float32), tiling)


def test_states_and_ranks_off_the_powers_of_two():
    check(operands((1, 2, 3, 3, 3, 5), torch.float32), PARALLEL)


def test_more_channels_than_a_block():
    check(operands((1, 2, 2, 19, 1, 1), torch.float32), SERIAL)


def test_large_steps_forget_and_small_ones_keep():
    tensors = operands((1, 3, 3, 2, 1, 1), torch.float32)
    tensors[3][:, 0] = 60.0
    tensors[3][:, 1] = -60.0
    check(tensors, PARALLEL)


def test_non_contiguous_inputs_are_copied():
    tensors = operands((1, 2, 3, 4, 2, 2), torch.float32)
    tensors[:2] = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:2]]
    assert not tensors[1].is_contiguous()
    check(tensors, SERIAL)


def test_rows_of_any_width():
    tensors = operands((1, 2, 3, 4, 2, 2), torch.float32)
    for width in (6, 24):
        tensors[1] = torch.randn(1, 2, 3, 4, width, generator=torch.Generator().manual_seed(1))
        check(tensors, PARALLEL)


def test_the_rule_takes_serial_time_where_sequences_abound():
    assert tiling_for(49, 1369, 32, 4).parallel
    assert tiling_for(16, 1369, 64, 4).parallel
    assert not tiling_for(1369, 49, 32, 4).parallel
    assert not tiling_for(1369, 16, 64, 4).parallel
    assert not tiling_for(49 * 40, 1369, 32, 4).parallel


@settings(max_examples=5, deadline=None)
@given(
    st.tuples(
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 18),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape(shape, parallel, seed):
    check(operands(shape, torch.float32, seed), PARALLEL if parallel else SERIAL)
