"""The correlation and the scan as fast as plain torch can express them on a CPU, for the peers.

The product's reference is written to be read; a peer that ran it would lose unfairly. Here each
step is one tensor operation over directions, sequences, channels and states, the steps' factors
are computed a block at a time to stay in the cache, and in bfloat16 the correlation's product is
in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.epilogue import naive as epilogue
from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.mlp import naive as norm_mlp
from uino_deploy.kernels.prologue import naive as prologue
from uino_deploy.kernels.selective_scan.naive import parts
from uino_deploy.model.hypercorrelation import Operators

# Elements of a block of decays, 1 MB of float32: the fastest of 0.5 to 16 MB on one AVX-512 core.
_BLOCK = 1 << 18


def operators(scan: Callable[..., Tensor]) -> Operators:
    """Return the model's operators in plain torch, with a scan of this module."""
    return Operators(
        correlation4d,
        prologue.scan_prologue,
        scan,
        epilogue.scan_epilogue,
        norm_mlp.norm_mlp,
    )


def correlation4d(
    query: Tensor, support: Tensor, weight: Tensor, height: int, width: int, pool: int
) -> Tensor:
    """Correlate tokens; see `uino_deploy.kernels.correlation.naive` for shapes and mathematics.

    The product is computed in the inputs' type, everything else as in the reference.
    """
    cosine = _unit(query)[:, None] @ _unit(support).transpose(-1, -2)
    volume = cosine.clamp_(min=0) * weight[:, :, None, None, :]
    planes = volume.reshape(-1, 1, height, width)
    pooled: Tensor = F.avg_pool2d(planes, pool, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*volume.shape[:-1], -1)


def _unit(tokens: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float32)
    return (tokens / norms.clamp(min=EPS)).to(tokens.dtype)


def scan_in_blocks(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane step by step; see `uino_deploy.kernels.selective_scan.naive`.

    For eager execution: a step is one fused multiply-add over everything but time.
    """
    height, width = x.shape[1:3]
    x_t = plane_in_steps(x.float())
    dt, inputs, outputs = parts(in_steps(packed.float()), dt_weight, A)
    delta = _delta(dt, dt_weight, dt_bias)
    decays = A.permute(2, 0, 1)[:, None]  # [N, 1, 4, D]
    y = torch.empty_like(x_t)
    state = x_t.new_zeros(A.shape[-1], *x_t.shape[1:])  # [N, S, 4, D]
    block = max(1, _BLOCK // state.numel())
    for begin in range(0, len(x_t), block):
        span = slice(begin, begin + block)
        decay = torch.exp(delta[span, None] * decays)  # [block, N, S, 4, D]
        states = (delta[span] * x_t[span])[:, None] * inputs[span].movedim(-1, 1)[..., None]
        for step in range(len(states)):
            state = states[step].addcmul_(decay[step], state)
        y[span] = (states * outputs[span].movedim(-1, 1)[..., None]).sum(1)
    return summed_at_cells(y + skip * x_t, height, width).to(x.dtype)


def scan_by_rows(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane in two levels; see `uino_deploy.kernels.selective_scan.naive`.

    For tracing: all rows of the plane are scanned at once from zero, then the rows' final states
    are scanned over the rows and added: height + width steps, not height * width.
    """
    height, width = x.shape[1:3]
    x_t = plane_in_steps(x.float())
    dt, inputs, outputs = parts(in_steps(packed.float()), dt_weight, A)
    delta = _delta(dt, dt_weight, dt_bias)
    added = (delta * x_t)[..., None] * inputs[..., None, :]  # [T, S, 4, D, N]
    rows = (height, width) if height == width else (1, height * width)
    added = added.reshape(*rows, *added.shape[1:])  # [rows, columns, S, 4, D, N]
    delta = delta.reshape(*rows, *delta.shape[1:])
    decay = torch.exp(delta[..., None] * A)
    since = torch.exp(delta.cumsum(1)[..., None] * A)  # from the row's start on
    states = [added[:, 0]]
    for column in range(1, rows[1]):
        states.append(decay[:, column] * states[-1] + added[:, column])
    carried = [torch.zeros_like(states[-1][0])]
    for row in range(rows[0] - 1):
        carried.append(since[row, -1] * carried[-1] + states[-1][row])
    known = torch.stack(states, dim=1) + since * torch.stack(carried)[:, None]
    y = (known.flatten(0, 1) * outputs[..., None, :]).sum(-1)
    return summed_at_cells(y + skip * x_t, height, width).to(x.dtype)


def _delta(dt: Tensor, dt_weight: Tensor, dt_bias: Tensor) -> Tensor:
    """[T, S, 4, R] -> steps [T, S, 4, D], float32."""
    raised = torch.einsum("tsgr,gdr->tsgd", dt, dt_weight)
    return F.softplus(raised + dt_bias)


def plane_in_steps(x: Tensor) -> Tensor:
    """Map [S, H, W, D] -> [T, S, 4, D], in the order in which each direction visits the cells."""
    forward = torch.stack([x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)], dim=2)
    return torch.cat([forward, forward.flip(1)], dim=2).transpose(0, 1).contiguous()


def in_steps(values: Tensor) -> Tensor:
    """Map [S, H, W, 4, C] -> [T, S, 4, C], in the order in which each direction visits the cells.

    Flips and transpositions are cheaper to differentiate than an order's indices.
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
