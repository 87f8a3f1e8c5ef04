"""The operators around the scan: their references against loops, and what PyTorch must know."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from uino_deploy.kernels import norm_mlp, scan_epilogue, scan_prologue  # noqa: E402 - after torch
from uino_deploy.kernels.planes import planes_shape  # noqa: E402
from uino_deploy.tolerances import OPERATOR  # noqa: E402

CELLS = (2, 3, 4, 2, 5)  # S, hq, wq, hs, ws
PLANES = pytest.mark.parametrize("plane", [0, 1], ids=["query", "support"])
TYPES = pytest.mark.parametrize("dtype", ["float64", *OPERATOR])


def normals(*shapes):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


def prologue_inputs(channels=3, width=8, cells=CELLS):
    """Return volume, norm_weight, norm_bias, in_weight, conv_weight, conv_bias, projection."""
    d = channels
    return normals((*cells, d), (d,), (d,), (d, d), (d, 3, 3), (d,), (4, width, d))


def epilogue_inputs(plane, channels=3, cells=CELLS):
    """Return y, volume, norm_*, gate_weight, out_norm_*, projection."""
    d = channels
    planes = planes_shape(cells, plane)
    return normals((*planes, d), (*cells, d), (d,), (d,), (d, d), (d,), (d,), (d, d))


def mlp_inputs(channels=3, hidden=5, cells=CELLS):
    """Return volume, norm_weight, norm_bias, weight1, bias1, weight2, bias2."""
    d, f = channels, hidden
    return normals((*cells, d), (d,), (d,), (f, d), (f,), (d, f), (d,))


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def exact(tensors):
    return [t.double().numpy() for t in tensors]


def places():
    """Yield each cell of the volume with its place in the query's and the support's planes."""
    _, hq, wq, hs, ws = CELLS
    for s, i, j, k, m in np.ndindex(*CELLS):
        yield (s, i, j, k, m), ((s * hs + k) * ws + m, i, j), ((s * hq + i) * wq + j, k, m)


def prologue_loops(tensors, plane):
    """Compute the definition cell by cell in float64."""
    volume, scale, shift, into, kernel, bias, projection = exact(tensors)
    a, b = ((1, 2), (3, 4))[plane]
    x = np.zeros((*planes_shape(CELLS, plane), len(bias)))
    for cell, *place in places():
        total = bias.copy()
        for u, v in np.ndindex(3, 3):
            at = list(cell)
            at[a] += u - 1
            at[b] += v - 1
            if 0 <= at[a] < CELLS[a] and 0 <= at[b] < CELLS[b]:
                total += kernel[:, u, v] * (into @ layer_norm(volume[tuple(at)], scale, shift))
        x[place[plane]] = silu(total)
    return x, np.einsum("gpd,shwd->shwgp", projection, x)


def epilogue_loops(tensors, plane):
    """Compute the definition cell by cell in float64."""
    y, volume, scale, shift, gate, out_scale, out_shift, projection = exact(tensors)
    out = volume.copy()
    for cell, *place in places():
        z = gate @ layer_norm(volume[cell], scale, shift)
        out[cell] += projection @ (layer_norm(y[place[plane]], out_scale, out_shift) * silu(z))
    return out


def mlp_loops(tensors):
    """Compute the definition cell by cell in float64."""
    volume, scale, shift, weight1, bias1, weight2, bias2 = exact(tensors)
    out = volume.copy()
    erf = np.vectorize(math.erf)
    for cell in np.ndindex(*CELLS):
        hidden = weight1 @ layer_norm(volume[cell], scale, shift) + bias1
        out[cell] += weight2 @ (hidden * (1 + erf(hidden / math.sqrt(2))) / 2) + bias2
    return out


def close(got, expected, dtype):
    expected = torch.as_tensor(expected)
    assert (got.shape, got.is_contiguous()) == (expected.shape, True)
    assert str(got.dtype) == f"torch.{dtype}"
    bound = 1e-13 if dtype == "float64" else OPERATOR[dtype].relative_l2
    assert (got.double() - expected).norm() <= bound * expected.norm()


def of_type(tensors, dtype):
    return [t.to(getattr(torch, dtype)) for t in tensors]


@PLANES
@TYPES
def test_prologue_against_loops(plane, dtype):
    tensors = of_type(prologue_inputs(), dtype)
    with torch.no_grad():
        made = scan_prologue(*tensors, plane)
    for got, expected in zip(made, prologue_loops(tensors, plane), strict=True):
        close(got, expected, dtype)


@PLANES
@TYPES
def test_epilogue_against_loops(plane, dtype):
    tensors = of_type(epilogue_inputs(plane), dtype)
    with torch.no_grad():
        close(scan_epilogue(*tensors, plane), epilogue_loops(tensors, plane), dtype)


@TYPES
def test_mlp_against_loops(dtype):
    tensors = of_type(mlp_inputs(), dtype)
    with torch.no_grad():
        close(norm_mlp(*tensors), mlp_loops(tensors), dtype)


SMALL = (1, 2, 2, 1, 2)
GIVEN = {
    "prologue-query": (torch.ops.uino.scan_prologue, prologue_inputs(2, 8, SMALL), (0,)),
    "prologue-support": (torch.ops.uino.scan_prologue, prologue_inputs(2, 8, SMALL), (1,)),
    "epilogue-query": (torch.ops.uino.scan_epilogue, epilogue_inputs(0, 2, SMALL), (0,)),
    "epilogue-support": (torch.ops.uino.scan_epilogue, epilogue_inputs(1, 2, SMALL), (1,)),
    "mlp": (torch.ops.uino.norm_mlp, mlp_inputs(2, 3, SMALL), ()),
}


@pytest.mark.parametrize("name", GIVEN)
def test_gradients_in_float64(name):
    operator, tensors, plane = GIVEN[name]
    inputs = [t.clone().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: operator(*t, *plane), inputs)


@pytest.mark.parametrize("name", ["prologue-query", "epilogue-support", "mlp"])
def test_the_operators_are_what_pytorch_expects(name):
    operator, tensors, plane = GIVEN[name]
    inputs = [t.float().requires_grad_() for t in tensors]
    torch.library.opcheck(operator.default, (*inputs, *plane))


def test_training_keeps_what_the_operator_would_compute_again():
    """Without Triton autograd sees the specification; without a gradient, the operator."""
    inputs = [t.float().requires_grad_() for t in mlp_inputs()]
    assert "uino" not in norm_mlp(*inputs).grad_fn.name()
    assert "uino" in torch.ops.uino.norm_mlp(*inputs).grad_fn.name()
    with torch.no_grad():
        assert torch.equal(norm_mlp(*inputs), torch.ops.uino.norm_mlp(*inputs))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], "volume has shape"),
        (1, lambda t: t[:2], "norm_weight has shape"),
        (2, lambda t: t[:2], "norm_bias has shape"),
        (3, lambda t: t[:2], "in_weight has shape"),
        (4, lambda t: t[:, :2], "conv_weight has shape"),
        (5, lambda t: t[:2], "conv_bias has shape"),
        (6, lambda t: t[:3], "projection has shape"),
        (6, lambda t: t.half(), "projection is torch.float16, expected torch.float64"),
        (7, lambda _: 2, "plane is 2"),
    ],
)
def test_a_prologue_that_does_not_fit_is_refused(index, change, message):
    given = [*prologue_inputs(), 0]
    given[index] = change(given[index])
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        scan_prologue(*given)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[:2], "y has shape"),
        (1, lambda t: t[..., :2], "y has shape"),
        (2, lambda t: t[:2], "norm_weight has shape"),
        (3, lambda t: t[:2], "norm_bias has shape"),
        (4, lambda t: t[:2], "gate_weight has shape"),
        (5, lambda t: t[:2], "out_norm_weight has shape"),
        (6, lambda t: t[:2], "out_norm_bias has shape"),
        (7, lambda t: t[:2], "projection has shape"),
        (0, lambda t: t.float(), "y is torch.float32, expected torch.float64"),
        (8, lambda _: -1, "plane is -1"),
    ],
)
def test_an_epilogue_that_does_not_fit_is_refused(index, change, message):
    given = [*epilogue_inputs(0), 0]
    given[index] = change(given[index])
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        scan_epilogue(*given)


@pytest.mark.parametrize(
    ("index", "name"),
    list(enumerate(["norm_weight", "norm_bias", "weight1", "bias1", "weight2", "bias2"], start=1)),
)
def test_an_mlp_that_does_not_fit_is_refused(index, name):
    given = mlp_inputs()
    given[index] = given[index][..., :2]
    with torch.no_grad(), pytest.raises(ValueError, match=f"{name} has shape"):
        norm_mlp(*given)
