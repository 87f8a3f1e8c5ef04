"""The selective scans written as their recurrence: the specification, CPU path and test oracle.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"
(arXiv 2312.00752), equation 2 with the zero-order hold on A and Euler's rule on B; the four
directions are those of VMamba (arXiv 2401.10166).
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import DIRECTIONS


def selective_scan2d(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane row-major, column-major and both reversed, each with its own state; add them.

    Per direction g, channel d and state n, in float32 (float64 for float64 inputs):
    delta = softplus(dt_weight[g, d] @ dt + dt_bias[g, d]);
    state = exp(delta * A) * state + delta * B * x; y = sum of C @ state + skip * x over g.

    Args:
        x: [S, H, W, D], any floating type.
        packed: [S, H, W, 4, P], x's type; of a row the first R are dt, the low-rank step, the next
            N are B, the next N are C, and the rest is not read.
        dt_weight: [4, D, R], float32.
        dt_bias: [4, D], float32.
        A: [4, D, N], negative, float32.
        skip: [4, D], float32.

    Returns:
        y: [S, H, W, D] of x's type: at each cell the sum over the directions.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    sequences, height, width, channels = x.shape
    order = visiting_order(height, width, x.device)  # [4, T]
    plane = x.to(compute).reshape(sequences, -1, 1, channels).expand(-1, -1, DIRECTIONS, -1)
    x_t = in_order(plane, order)  # [T, S, 4, D]
    steps, inputs, outputs = parts(in_order(packed.to(compute), order), dt_weight, A)
    delta_t = F.softplus(torch.einsum("tsgr,gdr->tsgd", steps, dt_weight.to(compute)) + dt_bias)
    state = x_t.new_zeros(sequences, DIRECTIONS, channels, A.shape[-1])
    y_t = []
    for xs, delta, b, c in zip(
        x_t.unbind(), delta_t.unbind(), inputs.unbind(), outputs.unbind(), strict=True
    ):
        decay = torch.exp(delta[..., None] * A)
        state = decay * state + (delta * xs)[..., None] * b[:, :, None, :]
        y_t.append((state * c[:, :, None, :]).sum(-1) + skip * xs)
    y = torch.stack(y_t) if y_t else x_t
    return in_place(y, order).sum(2).reshape(x.shape).to(x.dtype)


def parts(packed: Tensor, dt_weight: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dt [..., R], B [..., N] and C [..., N], views of packed [..., P]."""
    rank, states = dt_weight.shape[-1], A.shape[-1]
    first, last = rank + states, rank + 2 * states
    return packed[..., :rank], packed[..., rank:first], packed[..., first:last]


def visiting_order(height: int, width: int, device: torch.device) -> Tensor:
    """Return the row-major index of the cell that each direction visits at each step, [4, H*W]."""
    rows = torch.arange(height * width, device=device).reshape(height, width)
    forward = torch.stack([rows.flatten(), rows.T.flatten()])
    return torch.cat([forward, forward.flip(1)])


def in_order(tensor: Tensor, order: Tensor) -> Tensor:
    """Map [S, H, W, 4, C] or [S, T, 4, C] by cell -> [T, S, 4, C] by visiting step."""
    by_cell = tensor.reshape(tensor.shape[0], order.shape[1], DIRECTIONS, -1)
    visited = [by_cell[:, order[g], g] for g in range(DIRECTIONS)]
    return torch.stack(visited, dim=2).transpose(0, 1)


def in_place(by_step: Tensor, order: Tensor) -> Tensor:
    """Map [T, S, 4, D] by visiting step -> [S, T, 4, D] by cell, contiguous."""
    cells = [by_step[order[g].argsort(), :, g].transpose(0, 1) for g in range(DIRECTIONS)]
    return torch.stack(cells, dim=2)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan one dimension, with the signature and layouts of mamba-ssm's function of this name.

    Args:
        u: [batch, dim, length], any real floating type.
        delta: [batch, dim, length].
        A: [dim, state], real.
        B: [dim, state], [batch, state, length] or [batch, groups, state, length].
        C: as B; groups divide dim.
        D: [dim], added as D * u.
        z: [batch, dim, length], gates the result with silu(z).
        delta_bias: [dim], added to delta.
        delta_softplus: apply softplus to delta after the bias.
        return_last_state: also return the state after the last step.

    Returns:
        out [batch, dim, length] of u's type, or (out, last_state [batch, dim, state] float32).

    Raises:
        ValueError: A is complex, or B or C does not fit u.
    """
    compute = torch.float64 if u.dtype == torch.float64 else torch.float32
    if A.is_complex():
        raise ValueError("selective_scan_fn takes a real A; complex states are not implemented")
    x = u.to(compute)
    step = delta.to(compute)
    if delta_bias is not None:
        step = step + delta_bias.to(compute)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    states = A.shape[1]
    inputs = _per_channel("B", B.to(compute), u, states)
    outputs = _per_channel("C", C.to(compute), u, states)
    state = x.new_zeros(*x.shape[:2], states)
    y_t = []
    for xs, d, b, c in zip(
        x.unbind(-1), step.unbind(-1), inputs.unbind(-1), outputs.unbind(-1), strict=True
    ):
        decay = torch.exp(d[..., None] * A.to(compute))
        state = decay * state + (d * xs)[..., None] * b
        y_t.append((state * c).sum(-1))
    y = torch.stack(y_t, dim=-1) if y_t else torch.zeros_like(x)
    if D is not None:
        y = y + x * D.to(compute)[:, None]
    if z is not None:
        y = y * F.silu(z.to(compute))
    out = y.to(u.dtype)
    return (out, state) if return_last_state else out


def _per_channel(name: str, tensor: Tensor, u: Tensor, states: int) -> Tensor:
    """Expand B or C to [batch, dim, state, length]."""
    batch, dim, length = u.shape
    if tuple(tensor.shape) == (dim, states):
        return tensor[None, :, :, None].expand(batch, -1, -1, length)
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    groups = tensor.shape[1] if tensor.ndim == 4 else 0
    if not groups or tuple(tensor.shape) != (batch, groups, states, length) or dim % groups:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not fit u {tuple(u.shape)} "
            f"and {states} states"
        )
    return tensor.repeat_interleave(dim // tensor.shape[1], dim=1)
