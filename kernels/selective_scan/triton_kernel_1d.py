"""mamba-ssm's one-dimensional scan in Triton, on the plane scan's recurrence.

Time is contiguous here and `delta` has full size; a chunk of time is cut into rows that a
parallel scan joins, as in `triton_kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels.selective_scan.tiling import Tiling, segments
from uino_deploy.kernels.selective_scan.triton_kernel import (
    _LOG2E,
    _advance,
    _columns,
    _parameter,
    _softplus,
    _stack,
)


@triton.jit
def selective_scan1d_kernel(
    u_ptr,  # [batch, dim, length]
    delta_ptr,  # [batch, dim, length]
    a_ptr,  # [dim, N]
    b_ptr,  # [batch, groups, N, length], or [dim, N] where not B_VARIES
    c_ptr,  # as B, by C_VARIES
    skip_ptr,  # [dim], read where HAS_SKIP
    z_ptr,  # [batch, dim, length], read where HAS_GATE
    bias_ptr,  # [dim], read where HAS_BIAS
    dim,
    groups,
    length,
    out_ptr,  # [batch, dim, length]
    last_ptr,  # [batch, dim, N], float32
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    B_VARIES: tl.constexpr,
    C_VARIES: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Scan BLOCK_D channels of one group of one batch element."""
    CHUNK: tl.constexpr = ROWS * STEPS
    LOG2_STEPS: tl.constexpr = STEPS.bit_length() - 1
    batch = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    in_group = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_ok = in_group < dim // groups
    channel = group * (dim // groups) + in_group
    plane = batch * dim * length
    small = (batch * groups + group) * N * length
    n_range = tl.arange(0, BLOCK_N)[:, None]

    A = ()
    constant_b = ()
    constant_c = ()
    carry = ()
    for n in tl.static_range(N):
        A = A + (_parameter(a_ptr, channel * N + n, d_ok, ROWS) * _LOG2E,)
        carry = carry + (tl.zeros((BLOCK_D, ROWS), tl.float32),)
        if not B_VARIES:
            constant_b = constant_b + (_parameter(b_ptr, channel * N + n, d_ok, ROWS),)
        if not C_VARIES:
            constant_c = constant_c + (_parameter(c_ptr, channel * N + n, d_ok, ROWS),)
    if HAS_SKIP:
        skip = _parameter(skip_ptr, channel, d_ok, ROWS)
    if HAS_BIAS:
        bias = _parameter(bias_ptr, channel, d_ok, ROWS)

    for start in tl.range(0, length, CHUNK, num_stages=2):
        t = start + tl.arange(0, CHUNK)[None, :]
        offset = channel[:, None] * length + t
        ok = d_ok[:, None] & (t < length)
        u = tl.load(u_ptr + plane + offset, mask=ok, other=0.0)
        delta = tl.load(delta_ptr + plane + offset, mask=ok, other=0.0)
        us = _columns(tl.reshape(u, (BLOCK_D, ROWS, STEPS)), LOG2_STEPS)
        ds = _columns(tl.reshape(delta, (BLOCK_D, ROWS, STEPS)), LOG2_STEPS)
        # Separate names: a tuple that grew in the loop would change what the loop carries.
        small_ok = (n_range < N) & (t < length)
        if B_VARIES:
            b = tl.load(b_ptr + small + n_range * length + t, mask=small_ok, other=0.0)
            B = _per_visit(b, BLOCK_N, ROWS, STEPS)
        else:
            B = constant_b
        if C_VARIES:
            c = tl.load(c_ptr + small + n_range * length + t, mask=small_ok, other=0.0)
            C = _per_visit(c, BLOCK_N, ROWS, STEPS)
        else:
            C = constant_c
        deltas = ()
        inputs = ()
        y = ()
        for i in tl.static_range(STEPS):
            u_i = us[i].to(tl.float32)
            delta_i = ds[i].to(tl.float32)
            if HAS_BIAS:
                delta_i += bias
            if SOFTPLUS:
                delta_i = _softplus(delta_i)
            # Past the end the state stays, so the final state is that of the last step.
            step_ok = (start + tl.arange(0, ROWS) * STEPS + i < length)[None, :]
            delta_i = tl.where(step_ok, delta_i, 0.0)
            deltas = deltas + (delta_i,)
            inputs = inputs + (delta_i * u_i,)
            if HAS_SKIP:
                y = y + (skip * u_i,)
            else:
                y = y + (tl.zeros((BLOCK_D, ROWS), tl.float32),)
        B_STRIDE: tl.constexpr = BLOCK_N if B_VARIES else 0
        C_STRIDE: tl.constexpr = BLOCK_N if C_VARIES else 0
        y, carry = _advance(deltas, inputs, y, A, B, C, carry, N, B_STRIDE, C_STRIDE, True)
        out = tl.reshape(_stack(y, LOG2_STEPS), (BLOCK_D, CHUNK))
        if HAS_GATE:
            z = tl.load(z_ptr + plane + offset, mask=ok, other=0.0).to(tl.float32)
            out = out * z * tl.sigmoid(z)
        tl.store(out_ptr + plane + offset, out.to(out_ptr.dtype.element_ty), mask=ok)

    for n in tl.static_range(N):
        # Between chunks the state is in row 0, the other rows hold zeros.
        last = last_ptr + batch * dim * N + channel * N + n
        tl.store(last, tl.sum(carry[n], 1), mask=d_ok)


@triton.jit
def _per_visit(tile, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Split [N, ROWS * STEPS] into one [1, ROWS] for each step and state, states fastest."""
    LOG2: tl.constexpr = STEPS.bit_length() + BLOCK_N.bit_length() - 2
    by_row = tl.permute(tl.reshape(tile, (BLOCK_N, ROWS, STEPS)), (1, 2, 0))
    return _columns(tl.reshape(by_row, (1, ROWS, STEPS * BLOCK_N)), LOG2)


def constants(tiling: Tiling, states: int, varies: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the kernel's compile-time arguments.

    Args:
        tiling: what `segments` returned.
        states: N.
        varies: which of B and C change with time: "BC", "B", "C" or "".
        options: which of "skip" (D), "gate" (z), "bias" and "softplus" there are.
    """
    return {
        "N": states,
        "BLOCK_N": triton.next_power_of_2(states),
        "ROWS": tiling.rows,
        "STEPS": tiling.steps,
        "BLOCK_D": tiling.block_d,
        "B_VARIES": "B" in varies,
        "C_VARIES": "C" in varies,
        "HAS_SKIP": "skip" in options,
        "HAS_GATE": "gate" in options,
        "HAS_BIAS": "bias" in options,
        "SOFTPLUS": "softplus" in options,
    }


def varying(B: Tensor, C: Tensor) -> str:
    """Return which of B and C, as `grouped` returns them, change with time."""
    return "".join(name for name, t in (("B", B), ("C", C)) if t.ndim == 4)


def given_options(
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool
) -> list[str]:
    """Return the names of the options that a call takes, for `constants`."""
    given = {"skip": D is not None, "gate": z is not None, "bias": delta_bias is not None}
    return [name for name, taken in {**given, "softplus": softplus}.items() if taken]


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
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and layouts are those of `naive.selective_scan_fn`.

    Non-contiguous inputs are copied.

    Returns:
        out: [batch, dim, length] of u's type.
        last_state: [batch, dim, state], float32.

    Raises:
        ValueError: B or C does not fit u.
    """
    batch, dim, length = u.shape
    states = A.shape[1]
    B, C, groups = grouped(B, C, u, states)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last = torch.zeros(batch, dim, states, dtype=torch.float32, device=u.device)
    if not out.numel():
        return out, last
    tiling = segments(dim // groups, states)
    options = given_options(D, z, delta_bias, delta_softplus)
    grid = (batch, groups, triton.cdiv(dim // groups, tiling.block_d))
    absent = u  # placeholder for an operand that the kernel does not read
    selective_scan1d_kernel[grid](
        u.contiguous(),
        delta.contiguous(),
        A.contiguous(),
        B.contiguous(),
        C.contiguous(),
        absent if D is None else D.contiguous(),
        absent if z is None else z.contiguous(),
        absent if delta_bias is None else delta_bias.contiguous(),
        dim,
        groups,
        length,
        out,
        last,
        **constants(tiling, states, varying(B, C), options),
        num_warps=tiling.warps,
        enable_fp_fusion=True,
    )
    return out, last


def grouped(B: Tensor, C: Tensor, u: Tensor, states: int) -> tuple[Tensor, Tensor, int]:
    """Return B and C as the kernels take them, and how many groups of channels both have.

    Returns:
        B: [batch, groups, state, length], repeated where C has more groups, or [dim, state].
        C: likewise.
        groups: 1 where both are constant.

    Raises:
        ValueError: B or C does not fit u.
    """
    B, C = (_by_group("BC"[i], t, u, states) for i, t in enumerate((B, C)))
    counts = [t.shape[1] for t in (B, C) if t.ndim == 4]
    groups = max(counts, default=1)
    if any(groups % count for count in counts):
        groups = u.shape[1]
    B, C = (t.repeat_interleave(groups // t.shape[1], 1) if t.ndim == 4 else t for t in (B, C))
    return B, C, groups


def _by_group(name: str, tensor: Tensor, u: Tensor, states: int) -> Tensor:
    """Return B or C as [batch, groups, state, length], or as [dim, state] if it is constant."""
    batch, dim, length = u.shape
    if tuple(tensor.shape) == (dim, states):
        return tensor
    grouped = tensor[:, None] if tensor.ndim == 3 else tensor
    groups = grouped.shape[1] if grouped.ndim == 4 else 0
    if not groups or tuple(grouped.shape) != (batch, groups, states, length) or dim % groups:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not fit u {tuple(u.shape)} "
            f"and {states} states"
        )
    return grouped
