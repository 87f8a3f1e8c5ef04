"""The plane's scan and its gradient on a CPU: sequences innermost, a block of time in cache.

The mathematics is that of `naive`, with every sum over sequences, channels or states along
vectors of sequences. Only the state before each block is kept on the way forward; the way back
recomputes a block from it. README.md has the gradient's formulas.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan.naive import parts, visiting_order

# State elements of a block: one megabyte of float32, a core's L2 cache.
_BLOCK = 1 << 18


class _Steps(NamedTuple):
    """A scan's operands by visiting step, in the type that it computes in.

    Attributes:
        x: [T, 4, D, S].
        dt: [T, 4, R, S].
        B: [T, 4, N, 1, S].
        C: [T, 4, N, 1, S].
        raised: [T, 4, D, S], the argument of softplus.
        delta: [T, 4, D, S].
        inputs: [T, 4, D, S], delta * x.
        A: [4, N, D, 1].
        blocks: the first step of each block and the step after its last.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    raised: Tensor
    delta: Tensor
    inputs: Tensor
    A: Tensor
    blocks: list[tuple[int, int]]

    def block(self, first: int, end: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return decays and states of a block, [t, 4, N, D, S], from the state before it."""
        decay = (self.delta[first:end, :, None] * self.A).exp_()
        states = self.inputs[first:end, :, None] * self.B[first:end]
        for step in range(end - first):
            state = states[step].addcmul_(decay[step], state)
        return decay, states


def selective_scan2d(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane in four directions; see `naive.selective_scan2d` for shapes and mathematics."""
    if not x.numel():
        return torch.empty_like(x)
    steps = _steps(x, packed, dt_weight, dt_bias, A)
    y = skip[..., None] * steps.x
    state = torch.zeros_like(steps.inputs[0, :, None] * steps.A)
    for first, end in steps.blocks:
        _, states = steps.block(first, end, state)
        state = states[-1].clone()
        y[first:end] += (states * steps.C[first:end]).sum(2)
    return _summed_at_cells(y, x)


def gradients(
    x: Tensor,
    packed: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    skip: Tensor,
    of_y: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of all operands, in their order, from that of y, [S, H, W, D]."""
    operands = (x, packed, dt_weight, dt_bias, A, skip)
    if not x.numel():
        return tuple(torch.zeros_like(operand) for operand in operands)
    steps = _steps(x, packed, dt_weight, dt_bias, A)
    of_y_t = _plane_by_step(of_y, steps.x.dtype)
    of_inputs, of_exponent, of_packed, of_a = _of_recurrence(steps, of_y_t, packed.shape[-1])
    of_raised = (of_inputs * steps.x).add_(of_exponent).mul_(steps.raised.sigmoid())
    rank = dt_weight.shape[-1]
    of_packed[:, :, :rank] = dt_weight.to(of_raised.dtype).transpose(1, 2) @ of_raised
    of_x_t = (of_inputs * steps.delta).addcmul_(skip[..., None], of_y_t)
    return (
        _summed_at_cells(of_x_t, x),
        _at_cells(of_packed, packed),
        (of_raised @ steps.dt.transpose(2, 3)).sum(0),
        of_raised.sum((0, 3)),
        of_a.transpose(1, 2),
        (of_y_t * steps.x).sum((0, 3)),
    )


def _of_recurrence(
    steps: _Steps, of_y: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients that need the states.

    Returns:
        Of `inputs`, [T, 4, D, S]; of delta by way of the decays, likewise; of packed by visiting
        step, [T, 4, P, S], its dt still zero; of A, [4, N, D].
    """
    rank, states = steps.dt.shape[2], steps.A.shape[1]
    before = _states_before(steps)
    of_inputs, of_exponent = torch.empty_like(steps.x), torch.empty_like(steps.x)
    of_packed = steps.x.new_zeros(*steps.x.shape[:2], width, steps.x.shape[3])
    of_b = of_packed[:, :, rank : rank + states]
    of_c = of_packed[:, :, rank + states : rank + 2 * states]
    of_a = steps.A.new_zeros(steps.A.shape[:3])
    carried = torch.zeros_like(before[0])
    for (first, end), start in zip(reversed(steps.blocks), reversed(before), strict=True):
        decay, scanned = steps.block(first, end, start)
        of_y_now = of_y[first:end, :, None]
        of_c[first:end] = (scanned * of_y_now).sum(3)
        of_state = steps.C[first:end] * of_y_now
        of_state[-1] += carried
        for step in range(end - first - 1, 0, -1):
            of_state[step - 1].addcmul_(decay[step], of_state[step])
        carried = decay[0] * of_state[0]
        of_inputs[first:end] = (of_state * steps.B[first:end]).sum(2)
        of_b[first:end] = (of_state * steps.inputs[first:end, :, None]).sum(3)
        kept = decay.mul_(of_state)  # from here on: of state, times what it kept of the one before
        kept[1:] *= scanned[:-1]
        kept[0] *= start
        of_exponent[first:end] = (kept * steps.A).sum(2)
        of_a += kept.mul_(steps.delta[first:end, :, None]).sum(0).sum(-1)
    return of_inputs, of_exponent, of_packed, of_a


def _states_before(steps: _Steps) -> list[Tensor]:
    """Return the state before each block, [4, N, D, S]."""
    before = [torch.zeros_like(steps.inputs[0, :, None] * steps.A)]
    for first, end in steps.blocks[:-1]:
        before.append(steps.block(first, end, before[-1])[1][-1].clone())
    return before


def _steps(x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor) -> _Steps:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_t = _plane_by_step(x, compute)
    dt, B, C = parts(_packed_by_step(packed, compute).transpose(2, 3), dt_weight, A)
    dt, B, C = (part.transpose(2, 3) for part in (dt, B, C))
    raised = dt_bias[..., None].to(compute).expand_as(x_t).clone()
    for rank in range(dt.shape[2]):  # a matrix product would round by the number of sequences
        raised.addcmul_(dt_weight[..., rank, None].to(compute), dt[:, :, rank, None])
    delta = F.softplus(raised)
    states = A.transpose(1, 2)[..., None].contiguous()
    length = max(1, _BLOCK // (x.shape[0] * A.numel()))
    ends = [*range(length, len(x_t), length), len(x_t)]
    blocks = list(zip([0, *ends[:-1]], ends, strict=True))
    return _Steps(
        x_t, dt, B[..., None, :], C[..., None, :], raised, delta, delta * x_t, states, blocks
    )


def _plane_by_step(plane: Tensor, compute: torch.dtype) -> Tensor:
    """Map [S, H, W, D] by cell -> [T, 4, D, S] by visiting step."""
    order = visiting_order(plane.shape[1], plane.shape[2], plane.device)
    cells = plane.to(compute).flatten(1, 2).permute(1, 2, 0).contiguous()
    return torch.stack([cells[order[g]] for g in range(DIRECTIONS)], dim=1)


def _packed_by_step(packed: Tensor, compute: torch.dtype) -> Tensor:
    """Map [S, H, W, 4, P] by cell -> [T, 4, P, S] by visiting step."""
    order = visiting_order(packed.shape[1], packed.shape[2], packed.device)
    cells = packed.to(compute).flatten(1, 2).permute(1, 2, 3, 0).contiguous()
    return torch.stack([cells[order[g], g] for g in range(DIRECTIONS)], dim=1)


def _summed_at_cells(by_step: Tensor, like: Tensor) -> Tensor:
    """Map [T, 4, D, S] by visiting step -> [S, H, W, D] by cell, summed over the directions."""
    where = visiting_order(like.shape[1], like.shape[2], like.device).argsort(dim=1)
    total = by_step[where[0], 0]
    for g in range(1, DIRECTIONS):
        total += by_step[where[g], g]
    return total.permute(2, 0, 1).reshape(like.shape).to(like.dtype)


def _at_cells(by_step: Tensor, like: Tensor) -> Tensor:
    """Map [T, 4, P, S] by visiting step -> [S, H, W, 4, P] by cell."""
    where = visiting_order(like.shape[1], like.shape[2], like.device).argsort(dim=1)
    cells = torch.stack([by_step[where[g], g] for g in range(DIRECTIONS)], dim=1)
    return cells.permute(3, 0, 1, 2).reshape(like.shape).to(like.dtype)
