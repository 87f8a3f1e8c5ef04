"""Correlation4d's Triton kernel in Triton's interpreter, against float64 on the same inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uino_deploy.kernels.correlation import naive
from uino_deploy.kernels.correlation.triton_kernel import Tile, correlation4d, tile_for
from uino_deploy.tolerances import OPERATOR

pytestmark = pytest.mark.usefixtures("poisoned")

SMALL = Tile(16, 32, 16, 4, 1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def operands(shape, dtype, seed=0):
    batch, shared, shots, layers, n_query, height, width, channels = shape
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    support_batch = 1 if shared else batch
    tokens = height * width
    query = draw(batch, layers, n_query, channels)
    support = draw(support_batch, shots, layers, tokens, channels)
    weight = torch.rand(support_batch, shots, tokens, generator=generator) * 2 - 1
    return [t.to(dtype) for t in (query, support, weight)]


def error(out, tensors, height, width, pool):
    expected = naive.correlation4d(*(t.double() for t in tensors), height, width, pool)
    assert out.shape == expected.shape
    scale = expected.norm()
    return ((out.double() - expected).norm() / (scale if scale else 1)).item()


def check(tensors, height, width, pool, tile=SMALL):
    out = correlation4d(*tensors, height, width, pool, tile)
    bound = OPERATOR[str(tensors[0].dtype).removeprefix("torch.")].relative_l2
    assert error(out, tensors, height, width, pool) <= bound
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [1, 2, 3, 4])
def test_pools_and_types(dtype, pool):
    check(operands((1, False, 1, 1, 17, 5, 7, 23), dtype), 5, 7, pool)


def test_batch_shots_and_layers_find_their_own_support():
    check(operands((2, False, 2, 2, 5, 3, 3, 8), torch.float32), 3, 3, 2)
    check(operands((2, True, 2, 1, 5, 3, 3, 8), torch.float32), 3, 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [80, 87])
def test_the_shipped_tiles(dtype, capability):
    tile = tile_for(torch.empty(0, dtype=dtype).element_size(), capability)
    check(operands((1, True, 1, 1, 130, 7, 13, 40), dtype), 7, 13, 3, tile)


def test_one_token_and_one_channel():
    query, support, weight = operands((1, False, 1, 1, 1, 1, 1, 1), torch.float32)
    check([query.abs(), support.abs(), weight], 1, 1, 3)


def test_vectors_shorter_than_epsilon_correlate_with_nothing():
    tensors = operands((1, False, 1, 1, 6, 2, 3, 8), torch.float32)
    tensors[0][:, :, 2] = 0
    tensors[1][:, :, :, 4] = 0
    out = check(tensors, 2, 3, 1)
    assert not out[..., 2, :].any()
    assert not out[..., 4].any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_background_and_all_foreground(value):
    tensors = operands((1, False, 1, 1, 6, 3, 3, 8), torch.float16)
    tensors[2].fill_(value)
    out = check(tensors, 3, 3, 2)
    assert out.any() == bool(value)


@pytest.mark.parametrize("scale", [1e-7, 3e4])
def test_denormal_and_large_halves(scale):
    query, support, weight = operands((1, False, 1, 1, 6, 3, 3, 8), torch.float16)
    check([(query * 0.5 * scale).clamp(-6e4, 6e4), support, weight], 3, 3, 2)


def test_non_contiguous_inputs_are_copied():
    query, support, weight = operands((1, False, 1, 2, 6, 3, 3, 8), torch.float32)
    transposed = query.transpose(2, 3).contiguous().transpose(2, 3)
    assert not transposed.is_contiguous()
    check([transposed, support, weight], 3, 3, 2)


def test_a_pool_beyond_the_tile_is_refused():
    with pytest.raises(ValueError, match="1 to 8"):
        correlation4d(*operands((1, False, 1, 1, 6, 3, 3, 8), torch.float32), 3, 3, 9)


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(
        st.integers(1, 2),
        st.booleans(),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(1, 19),
        st.integers(1, 7),
        st.integers(1, 7),
        st.integers(1, 33),
    ),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_any_shape(shape, pool, seed):
    height, width = shape[5:7]
    check(operands(shape, torch.float32, seed), height, width, pool)
