"""The selective scan unfused, as PyTorch users write it: what others are compared with.

The mathematics is that of `naive`. Everything but the recurrence is computed for the whole
sequence at once, and the recurrence's gradient is written out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.selective_scan.naive import parts


class _Recurrence(torch.autograd.Function):
    """The recurrence state[t] = decay[t] * state[t - 1] + inputs[t] along axis 0, from zero."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor) -> Tensor:
        states = inputs.clone()
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        of_inputs = gradient.clone()
        for t in range(len(states) - 1, 0, -1):
            of_inputs[t - 1].addcmul_(decay[t], of_inputs[t])
        of_decay = torch.zeros_like(decay)
        torch.mul(of_inputs[1:], states[:-1], out=of_decay[1:])
        return of_decay, of_inputs


def selective_scan2d(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane in four directions; see `naive.selective_scan2d` for shapes and mathematics."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_t = plane_in_steps(x.to(compute))
    steps, inputs, outputs = parts(in_steps(packed.to(compute)), dt_weight, A)
    delta = F.softplus(torch.einsum("tsgr,gdr->tsgd", steps, dt_weight.to(compute)) + dt_bias)
    decay = torch.exp(delta[..., None] * A)  # [T, S, 4, D, N]
    states = _Recurrence.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
        decay, (delta * x_t)[..., None] * inputs[:, :, :, None, :]
    )
    y = (states @ outputs[..., None])[..., 0] + skip * x_t
    return summed_at_cells(y, *x.shape[1:3]).to(x.dtype)


def plane_in_steps(x: Tensor) -> Tensor:
    """Map [S, H, W, D] -> [T, S, 4, D], in the order in which each direction visits the cells."""
    forward = torch.stack([x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)], dim=2)
    return torch.cat([forward, forward.flip(1)], dim=2).transpose(0, 1).contiguous()


def in_steps(values: Tensor) -> Tensor:
    """Map [S, H, W, 4, C] -> [T, S, 4, C], in the order in which each direction visits the cells.

    Flips and transpositions are cheaper to differentiate than `naive.in_order`'s indices.
    """
    rows, columns, rows_back, columns_back = values.unbind(3)
    steps = [
        rows.flatten(1, 2),
        columns.transpose(1, 2).flatten(1, 2),
        rows_back.flatten(1, 2).flip(1),
        columns_back.transpose(1, 2).flatten(1, 2).flip(1),
    ]
    return torch.stack(steps, dim=2).transpose(0, 1).contiguous()


def summed_at_cells(y: Tensor, height: int, width: int) -> Tensor:
    """Map [T, S, 4, D] by step -> [S, H, W, D] by cell, the sum over the directions."""
    rows, columns, rows_back, columns_back = y.transpose(0, 1).unbind(2)
    sequences, _, channels = rows.shape
    along_rows = (rows + rows_back.flip(1)).reshape(sequences, height, width, channels)
    along_columns = (columns + columns_back.flip(1)).reshape(sequences, width, height, channels)
    return along_rows + along_columns.transpose(1, 2)
