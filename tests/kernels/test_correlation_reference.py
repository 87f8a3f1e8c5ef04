"""Correlation4d's reference against loops, and what PyTorch needs to know of the operator."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from uino_deploy.kernels import correlation4d  # noqa: E402 - after torch, which may be missing
from uino_deploy.tolerances import OPERATOR  # noqa: E402

EPS = 1e-6


def inputs(batch=2, shots=2, layers=2, queries=5, grid=(4, 5), channels=6, shared=False, seed=0):
    """Return query, support and weight in float64; with `shared`, one support for all queries."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    supports = 1 if shared else batch
    query = normal(batch, layers, queries, channels)
    support = normal(supports, shots, layers, grid[0] * grid[1], channels)
    return query, support, normal(supports, shots, grid[0] * grid[1])


def loops(query, support, weight, height, width, pool):
    """Compute the definition cell by cell in float64."""
    query, support, weight = (tensor.double().numpy() for tensor in (query, support, weight))
    batch, layers, queries, _ = query.shape
    shots = support.shape[1]
    rows, columns = -(-height // pool), -(-width // pool)
    out = np.zeros((batch, shots, layers, queries, rows * columns))
    for b, k, layer, q in np.ndindex(*out.shape[:-1]):
        one = b if support.shape[0] == batch else 0
        of_weight = b if weight.shape[0] == batch else 0
        for window in range(rows * columns):
            top, left = window // columns * pool, window % columns * pool
            cells = [
                y * width + x
                for y in range(top, min(top + pool, height))
                for x in range(left, min(left + pool, width))
            ]
            for s in cells:
                u, v = query[b, layer, q], support[one, k, layer, s]
                norms = max(np.sqrt(u @ u), EPS) * max(np.sqrt(v @ v), EPS)
                out[b, k, layer, q, window] += max(0.0, u @ v / norms) * weight[of_weight, k, s]
            out[b, k, layer, q, window] /= len(cells)
    return torch.from_numpy(out)


def relative_error(got, expected) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


# Whole and partial windows, a window of one cell, and one larger than the plane.
GRIDS = [((6, 6), 3), ((4, 5), 3), ((5, 4), 2), ((3, 3), 1), ((2, 3), 4)]


@pytest.mark.parametrize(("grid", "pool"), GRIDS, ids=str)
@pytest.mark.parametrize("dtype", OPERATOR)
def test_reference_against_loops(grid, pool, dtype):
    rounded = [tensor.to(getattr(torch, dtype)) for tensor in inputs(grid=grid)]
    got = correlation4d(*rounded, *grid, pool)
    assert got.dtype == getattr(torch, dtype)
    assert relative_error(got, loops(*rounded, *grid, pool)) < OPERATOR[dtype].relative_l2


def test_float64_is_computed_in_float64():
    tensors = inputs()
    assert relative_error(correlation4d(*tensors, 4, 5, 3), loops(*tensors, 4, 5, 3)) < 1e-14


def test_one_support_serves_a_batch_of_queries():
    query, support, weight = inputs(batch=3, shared=True)
    expected = correlation4d(query, support.repeat(3, 1, 1, 1, 1), weight.repeat(3, 1, 1), 4, 5, 3)
    assert relative_error(correlation4d(query, support, weight, 4, 5, 3), expected) < 1e-14
    # Each broadcasts by itself.
    weights = weight * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    got = correlation4d(query, support, weights, 4, 5, 3)
    assert relative_error(got, loops(query, support, weights, 4, 5, 3)) < 1e-14


def test_opposite_tokens_and_zero_tokens_give_zero():
    query, support, weight = inputs(grid=(1, 2))
    support[:, :, :, 0] = -query[:, None, :, 0]
    support[:, :, :, 1] = 0
    query[:, :, 1] = 0
    out = correlation4d(query, support, weight, 1, 2, 1)
    assert torch.equal(out[:, :, :, 0, 0], torch.zeros(2, 2, 2, dtype=torch.float64))
    assert not out[..., 1].any()
    assert not out[:, :, :, 1].any()
    assert out.isfinite().all()


def test_tiny_norms_are_floored():
    query = torch.tensor([[[[1e-9, 0.0]]]], dtype=torch.float64)
    support = torch.tensor([[[[[1e-3, 0.0]]]]], dtype=torch.float64)
    out = correlation4d(query, support, torch.ones(1, 1, 1, dtype=torch.float64), 1, 1, 1)
    assert out.item() == pytest.approx(1e-9 / EPS)


def test_gradient_in_float64():
    tensors = [tensor.requires_grad_() for tensor in inputs(queries=3, channels=3, grid=(2, 3))]
    assert torch.autograd.gradcheck(lambda *t: correlation4d(*t, 2, 3, 2), tensors)
    shared = [tensor.requires_grad_() for tensor in inputs(queries=2, grid=(2, 2), shared=True)]
    assert torch.autograd.gradcheck(lambda *t: correlation4d(*t, 2, 2, 2), shared)


@pytest.mark.parametrize("shared", [False, True])
def test_operator_is_what_pytorch_expects(shared):
    tensors = [tensor.float().requires_grad_() for tensor in inputs(shared=shared)]
    torch.library.opcheck(correlation4d, (*tensors, 4, 5, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, s, w: (q, s[..., :5], w, 4, 5, 3), "support has shape"),
        (lambda q, s, w: (q, s[:, :, :1], w, 4, 5, 3), "support has shape"),
        (lambda q, s, w: (q[:1].repeat(3, 1, 1, 1), s, w, 4, 5, 3), "support has shape"),
        (lambda q, s, w: (q, s, w[:, :1], 4, 5, 3), "weight has shape"),
        (lambda q, s, w: (q, s.half(), w, 4, 5, 3), "support is torch.float16"),
        (lambda q, s, w: (q, s, w.float(), 4, 5, 3), "weight is torch.float32"),
        (lambda q, s, w: (q, s, w, 4, 4, 3), "grid 4x4 with pool 3 does not fit 20 tokens"),
        (lambda q, s, w: (q, s, w, 4, 5, 0), "grid 4x5 with pool 0"),
        (lambda q, s, w: (q, s, w, -4, -5, 3), "grid -4x-5 with pool 3"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        correlation4d(*change(*inputs()))
