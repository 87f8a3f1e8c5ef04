"""ScanPrologue and ScanEpilogue: their references against loops, and what PyTorch must know."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from uino_deploy.kernels import scan_epilogue, scan_prologue  # noqa: E402 - after torch
from uino_deploy.tolerances import OPERATOR  # noqa: E402

CELLS = (2, 3, 4, 2, 5)  # S, hq, wq, hs, ws
PLANES = pytest.mark.parametrize("plane", [0, 1], ids=["query", "support"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prologue_inputs(channels=3, width=8):
    """Return xz, conv_weight, conv_bias, projection in float64."""
    kernel, shift = normal(channels, 3, 3, seed=2), normal(channels, seed=3)
    return normal(*CELLS, 2 * channels, seed=1), kernel, shift, normal(4, width, channels, seed=4)


def epilogue_inputs(plane, channels=3):
    """Return y, xz, norm_weight, norm_bias, projection, residual in float64."""
    shots, hq, wq, hs, ws = CELLS
    planes = (shots * hs * ws, hq, wq) if plane == 0 else (shots * hq * wq, hs, ws)
    y, gate = normal(*planes, channels, seed=1), normal(*CELLS, 2 * channels, seed=2)
    scale, shift = normal(channels, seed=3), normal(channels, seed=4)
    return y, gate, scale, shift, normal(channels, channels, seed=5), normal(*CELLS, channels)


def silu(x):
    return x / (1 + np.exp(-x))


def places():
    """Yield each cell of the volume with its place in the query's and the support's planes."""
    _, hq, wq, hs, ws = CELLS
    for s, i, j, k, m in np.ndindex(*CELLS):
        yield (s, i, j, k, m), ((s * hs + k) * ws + m, i, j), ((s * hq + i) * wq + j, k, m)


def prologue_loops(xz, kernel, shift, projection, plane):
    """Compute the definition cell by cell in float64."""
    xz, kernel, shift, projection = (t.double().numpy() for t in (xz, kernel, shift, projection))
    channels, (a, b) = len(shift), ((1, 2), (3, 4))[plane]
    found = {}
    for cell, *place in places():
        total = shift.copy()
        for u, v in np.ndindex(3, 3):
            at = list(cell)
            at[a] += u - 1
            at[b] += v - 1
            if 0 <= at[a] < CELLS[a] and 0 <= at[b] < CELLS[b]:
                total += kernel[:, u, v] * xz[tuple(at)][:channels]
        found[place[plane]] = silu(total)
    planes = tuple(np.max(list(found), axis=0) + 1)
    x = np.zeros((*planes, channels))
    for at, value in found.items():
        x[at] = value
    return x, np.einsum("gpd,shwd->shwgp", projection, x)


def epilogue_loops(y, xz, scale, shift, projection, residual, plane):
    """Compute the definition cell by cell in float64."""
    y, xz, scale, shift, projection, residual = (
        t.double().numpy() for t in (y, xz, scale, shift, projection, residual)
    )
    out = residual.copy()
    for cell, *place in places():
        value = y[place[plane]]
        normed = (value - value.mean()) / np.sqrt(value.var() + 1e-5) * scale + shift
        out[cell] += projection @ (normed * silu(xz[cell][len(scale) :]))
    return out


def close(got, expected, dtype):
    expected = torch.as_tensor(expected)
    assert (got.shape, got.is_contiguous()) == (expected.shape, True)
    assert str(got.dtype) == f"torch.{dtype}"
    bound = 1e-14 if dtype == "float64" else OPERATOR[dtype].relative_l2
    assert (got.double() - expected).norm() <= bound * expected.norm()


@PLANES
@pytest.mark.parametrize("dtype", ["float64", *OPERATOR])
def test_prologue_against_loops(plane, dtype):
    tensors = [t.to(getattr(torch, dtype)) for t in prologue_inputs()]
    x, packed = prologue_loops(*tensors, plane)
    for got, expected in zip(scan_prologue(*tensors, plane), (x, packed), strict=True):
        close(got, expected, dtype)


@PLANES
@pytest.mark.parametrize("dtype", ["float64", *OPERATOR])
def test_epilogue_against_loops(plane, dtype):
    tensors = [t.to(getattr(torch, dtype)) for t in epilogue_inputs(plane)]
    close(scan_epilogue(*tensors, plane), epilogue_loops(*tensors, plane), dtype)


@PLANES
def test_gradients_in_float64(plane):
    prologue = [t[:1, :2, :2, :, :2] if t.ndim == 6 else t for t in prologue_inputs(2)]
    inputs = [t.clone().requires_grad_() for t in prologue]
    assert torch.autograd.gradcheck(lambda *t: scan_prologue(*t, plane), inputs)
    inputs = [t.requires_grad_() for t in epilogue_inputs(plane, 2)]
    assert torch.autograd.gradcheck(lambda *t: scan_epilogue(*t, plane), inputs)


@PLANES
def test_the_operators_are_what_pytorch_expects(plane):
    inputs = [t.float().requires_grad_() for t in prologue_inputs()]
    torch.library.opcheck(scan_prologue, (*inputs, plane))
    inputs = [t.float().requires_grad_() for t in epilogue_inputs(plane)]
    torch.library.opcheck(scan_epilogue, (*inputs, plane))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[..., :5], "xz has shape"),
        (1, lambda t: t[:2], "conv_weight has shape"),
        (2, lambda t: t[:2], "conv_bias has shape"),
        (3, lambda t: t[:3], "projection has shape"),
        (3, lambda t: t.half(), "projection is torch.float16, expected torch.float64"),
        (4, lambda _: 2, "plane is 2"),
    ],
)
def test_a_prologue_that_does_not_fit_is_refused(index, change, message):
    given = [*prologue_inputs(), 0]
    given[index] = change(given[index])
    with pytest.raises(ValueError, match=message):
        scan_prologue(*given)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[:2], "y has shape"),
        (1, lambda t: t[..., :5], "xz has shape"),
        (2, lambda t: t[:2], "norm_weight has shape"),
        (3, lambda t: t[:2], "norm_bias has shape"),
        (4, lambda t: t[:2], "projection has shape"),
        (5, lambda t: t[:, :2], "residual has shape"),
        (5, lambda t: t.float(), "residual is torch.float32, expected torch.float64"),
        (6, lambda _: -1, "plane is -1"),
    ],
)
def test_an_epilogue_that_does_not_fit_is_refused(index, change, message):
    given = [*epilogue_inputs(0), 0]
    given[index] = change(given[index])
    with pytest.raises(ValueError, match=message):
        scan_epilogue(*given)
