"""The selective scan in a form that is fast to differentiate, for the gradient of `op`.

The mathematics is that of `naive`. Everything but the recurrence is computed for the whole
sequence at once, and the recurrence's gradient is written out, so a training step on a CPU takes
half the time of differentiating `naive`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan.naive import (
    in_order,
    in_place,
    parts,
    visiting_order,
)


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
    order = visiting_order(x.shape[1], x.shape[2], x.device)
    plane = x.to(compute).flatten(1, 2)[:, :, None].expand(-1, -1, DIRECTIONS, -1)
    x_t = in_order(plane, order)  # [T, S, 4, D]
    steps, inputs, outputs = parts(in_order(packed.to(compute), order), dt_weight, A)
    delta = F.softplus(torch.einsum("tsgr,gdr->tsgd", steps, dt_weight.to(compute)) + dt_bias)
    decay = torch.exp(delta[..., None] * A)  # [T, S, 4, D, N]
    states = _Recurrence.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
        decay, (delta * x_t)[..., None] * inputs[:, :, :, None, :]
    )
    y = (states @ outputs[..., None])[..., 0] + skip * x_t
    return in_place(y, order).sum(2).reshape(x.shape).to(x.dtype)
