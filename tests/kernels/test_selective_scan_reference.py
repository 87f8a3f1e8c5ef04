"""The selective scans' references against loops, and what PyTorch needs to know of the operator."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from uino_deploy.kernels import selective_scan2d, selective_scan_fn  # noqa: E402 - after torch
from uino_deploy.kernels.selective_scan.naive import visiting_order  # noqa: E402
from uino_deploy.tolerances import OPERATOR  # noqa: E402


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softplus(x):
    return np.logaddexp(0, x)


def relative_error(got, expected) -> float:
    expected = torch.as_tensor(expected)
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


# --- two dimensions, four directions ---


def plane_inputs(sequences=2, grid=(3, 4), channels=3, rank=2, states=2, pad=2):
    """Return x, packed, dt_weight, dt_bias, A, skip in float64."""
    cells = (sequences, *grid)
    return (
        normal(*cells, channels, seed=1),
        normal(*cells, 4, rank + 2 * states + pad, seed=2),
        normal(4, channels, rank, seed=5),
        normal(4, channels, seed=6),
        -normal(4, channels, states, seed=7).abs() - 0.1,
        normal(4, channels, seed=8),
    )


def plane_loops(x, packed, dt_weight, dt_bias, A, skip):
    """Compute the definition step by step in float64."""
    x, packed, dt_weight, dt_bias, A, skip = (
        tensor.double().numpy() for tensor in (x, packed, dt_weight, dt_bias, A, skip)
    )
    rank, states = dt_weight.shape[-1], A.shape[-1]
    dt, B, C, _ = np.split(packed, np.cumsum([rank, states, states]), axis=-1)
    sequences, height, width, channels = x.shape
    row_major = [(i, j) for i in range(height) for j in range(width)]
    column_major = [(i, j) for j in range(width) for i in range(height)]
    visits = [row_major, column_major, row_major[::-1], column_major[::-1]]
    y = np.zeros((sequences, height, width, channels))
    for s, g, d in np.ndindex(sequences, 4, channels):
        state = np.zeros(states)
        for i, j in visits[g]:
            delta = softplus(dt_weight[g, d] @ dt[s, i, j, g] + dt_bias[g, d])
            state = np.exp(delta * A[g, d]) * state + delta * B[s, i, j, g] * x[s, i, j, d]
            y[s, i, j, d] += C[s, i, j, g] @ state + skip[g, d] * x[s, i, j, d]
    return y


def rounded(tensors, dtype):
    """Return activations in `dtype`, parameters in float32 (in float64 for float64)."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(dtype if i < 2 else parameters) for i, t in enumerate(tensors)]


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", OPERATOR)
def test_plane_against_loops(grid, dtype):
    tensors = rounded(plane_inputs(grid=grid), getattr(torch, dtype))
    got = selective_scan2d(*tensors)
    assert got.dtype == getattr(torch, dtype)
    assert relative_error(got, plane_loops(*tensors)) < OPERATOR[dtype].relative_l2


def test_plane_in_float64_is_computed_in_float64():
    tensors = plane_inputs()
    assert relative_error(selective_scan2d(*tensors), plane_loops(*tensors)) < 1e-14


def test_visiting_order():
    order = visiting_order(2, 3, torch.device("cpu"))
    assert order.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_sequences_do_not_mix():
    x, *rest = plane_inputs(sequences=3)
    alone = [selective_scan2d(x[i : i + 1], rest[0][i : i + 1], *rest[1:]) for i in range(3)]
    assert torch.equal(selective_scan2d(x, *rest), torch.cat(alone))


def test_plane_gradient_in_float64():
    tensors = plane_inputs(sequences=1, grid=(2, 2), channels=2)
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(selective_scan2d, tensors)


def test_plane_operator_is_what_pytorch_expects():
    tensors = tuple(tensor.float().requires_grad_() for tensor in plane_inputs(1, (1, 2)))
    torch.library.opcheck(selective_scan2d, tensors)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda t: t[..., :3, :], "packed has shape"),
        (1, lambda t: t[:, :2], "packed has shape"),
        (1, lambda t: t[..., :5], "packed has shape"),
        (2, lambda t: t[:, :2], "dt_weight has shape"),
        (3, lambda t: t[:3], "dt_bias has shape"),
        (4, lambda t: t[:, :2], "A has shape"),
        (5, lambda t: t[:, :2], "skip has shape"),
        (1, lambda t: t.half(), "packed is torch.float16, expected torch.float64"),
        (4, lambda t: t.float(), "A is torch.float32, expected torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(index, change, message):
    tensors = list(plane_inputs())
    tensors[index] = change(tensors[index])
    with pytest.raises(ValueError, match=message):
        selective_scan2d(*tensors)


# --- one dimension, mamba-ssm's signature ---

BATCH, DIM, STATES, LENGTH = 2, 6, 3, 7

# Layouts of B and C that mamba-ssm takes, groups last.
LAYOUTS = {
    "per channel": (DIM, STATES),
    "per step": (BATCH, STATES, LENGTH),
    "one group": (BATCH, 1, STATES, LENGTH),
    "two groups": (BATCH, 2, STATES, LENGTH),
    "a group a channel": (BATCH, DIM, STATES, LENGTH),
}


def at(tensor, batch, channel, step):
    """Return the [STATES] of B or C for a channel at a step, whatever the layout."""
    if tensor.ndim == 2:
        return tensor[channel]
    if tensor.ndim == 3:
        return tensor[batch, :, step]
    return tensor[batch, channel // (DIM // tensor.shape[1]), :, step]


def sequence_loops(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Compute the definition step by step in float64; return the output and the last state."""
    u, delta, A, B, C, D, z, delta_bias = (
        None if tensor is None else tensor.double().numpy()
        for tensor in (u, delta, A, B, C, D, z, delta_bias)
    )
    out, last = np.zeros(u.shape), np.zeros((BATCH, DIM, STATES))
    for b, d, t in np.ndindex(*u.shape):
        step = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d])
        step = softplus(step) if delta_softplus else step
        last[b, d] = np.exp(step * A[d]) * last[b, d] + step * at(B, b, d, t) * u[b, d, t]
        out[b, d, t] = at(C, b, d, t) @ last[b, d] + (0 if D is None else D[d] * u[b, d, t])
        if z is not None:
            out[b, d, t] *= z[b, d, t] / (1 + np.exp(-z[b, d, t]))
    return out, last


def sequence_inputs(of_b="per step", of_c="per step"):
    """Return u, delta (positive), A, B and C in float64."""
    return (
        normal(BATCH, DIM, LENGTH, seed=1),
        normal(BATCH, DIM, LENGTH, seed=2).abs(),
        -normal(DIM, STATES, seed=3).abs(),
        normal(*LAYOUTS[of_b], seed=4),
        normal(*LAYOUTS[of_c], seed=5),
    )


def options():
    return {
        "D": normal(DIM, seed=6),
        "z": normal(BATCH, DIM, LENGTH, seed=7),
        "delta_bias": normal(DIM, seed=8),
        "delta_softplus": True,
    }


@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_c", LAYOUTS)
def test_sequence_layouts(of_b, of_c):
    tensors = sequence_inputs(of_b, of_c)
    got = selective_scan_fn(*tensors)
    assert relative_error(got, sequence_loops(*tensors)[0]) < 1e-14


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("D",),
        ("z",),
        ("delta_bias",),
        ("delta_softplus",),
        ("D", "z", "delta_bias", "delta_softplus"),
    ],
    ids="+".join,
)
def test_sequence_options(given):
    tensors = sequence_inputs(of_c="two groups")
    chosen = {name: value for name, value in options().items() if name in given}
    out, state = sequence_loops(*tensors, **chosen)
    got, last = selective_scan_fn(*tensors, **chosen, return_last_state=True)
    assert relative_error(got, out) < 1e-14
    assert relative_error(last, state) < 1e-14
    assert torch.equal(selective_scan_fn(*tensors, **chosen), got)


@pytest.mark.parametrize("dtype", OPERATOR)
def test_sequence_types(dtype):
    u, delta, A, B, C = sequence_inputs()
    kind = getattr(torch, dtype)
    tensors = (u.to(kind), delta.to(kind), A.float(), B.to(kind), C.to(kind))
    chosen = options()
    chosen = {**chosen, "z": chosen["z"].to(kind), "D": chosen["D"].float()}
    chosen["delta_bias"] = chosen["delta_bias"].float()
    out, state = sequence_loops(*tensors, **chosen)
    got, last = selective_scan_fn(*tensors, **chosen, return_last_state=True)
    assert (got.dtype, last.dtype) == (kind, torch.float32)
    assert relative_error(got, out) < OPERATOR[dtype].relative_l2
    assert relative_error(last, state) < OPERATOR["float32"].relative_l2


def test_sequence_gradient_in_float64():
    tensors = [tensor.requires_grad_() for tensor in sequence_inputs("two groups", "per channel")]
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan_fn(*t, **options(), return_last_state=True), tensors
    )


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (3, (DIM, STATES + 1)),
        (3, (BATCH, 1, LENGTH)),  # would broadcast over the states
        (4, (BATCH, STATES, LENGTH + 1)),
        (4, (BATCH, 4, STATES, LENGTH)),
        (4, (STATES,)),
    ],
    ids=str,
)
def test_sequence_shapes_that_do_not_fit_are_refused(index, shape):
    tensors = list(sequence_inputs())
    tensors[index] = normal(*shape)
    with pytest.raises(ValueError, match=f"^{'BC'[index - 3]} has shape"):
        selective_scan_fn(*tensors)


def test_complex_states_are_refused():
    u, delta, A, B, C = sequence_inputs()
    with pytest.raises(ValueError, match="real A"):
        selective_scan_fn(u, delta, A.to(torch.complex128), B, C)
