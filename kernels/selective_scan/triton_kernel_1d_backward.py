"""The gradient of mamba-ssm's one-dimensional scan in Triton: one launch, and one or two sums.

Each block goes over its channels twice, as in `triton_kernel_backward`; time is always cut into
rows that a parallel scan joins.
"""

from __future__ import annotations

from dataclasses import replace

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
from uino_deploy.kernels.selective_scan.triton_kernel_1d import (
    _per_visit,
    constants,
    given_options,
    grouped,
    varying,
)
from uino_deploy.kernels.selective_scan.triton_kernel_retreat import _LN2, _retreat, _sigmoid


@triton.jit
def _load_steps(ptr, offset, ok, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Load [D, ROWS * STEPS] and split it into STEPS tiles [D, ROWS] in float32."""
    tile = tl.load(ptr + offset, mask=ok, other=0.0).to(tl.float32)
    return _columns(tl.reshape(tile, (tile.shape[0], ROWS, STEPS)), STEPS.bit_length() - 1)


@triton.jit
def _store_steps(ptr, parts, offset, ok):
    """Undo `_load_steps`."""
    STEPS: tl.constexpr = len(parts)
    tile = tl.reshape(_stack(parts, STEPS.bit_length() - 1), offset.shape)
    tl.store(ptr + offset, tile.to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def _load_small(
    ptr, length, t, N: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr
):
    """Load [N, ROWS * STEPS] of B or C: tiles [1, ROWS], the states of a step side by side."""
    n_range = tl.arange(0, BLOCK_N)[:, None]
    ok = (n_range < N) & (t < length)
    tile = tl.load(ptr + n_range * length + t, mask=ok, other=0.0)
    return _per_visit(tile, BLOCK_N, ROWS, STEPS)


@triton.jit
def _real_steps(raw, u, bias, start, length, ROWS: tl.constexpr, SOFTPLUS: tl.constexpr):
    """Return delta, delta * u and the derivative of delta by the raw input, each per step."""
    STEPS: tl.constexpr = len(raw)
    deltas = ()
    inputs = ()
    slopes = ()
    for i in tl.static_range(STEPS):
        given = raw[i] + bias
        # Past the end nothing changes, so the last state's gradient reaches the last step.
        ok = (start + tl.arange(0, ROWS) * STEPS + i < length)[None, :]
        delta = tl.where(ok, _softplus(given) if SOFTPLUS else given, 0.0)
        deltas = deltas + (delta,)
        inputs = inputs + (delta * u[i],)
        slopes = slopes + (_sigmoid(given) if SOFTPLUS else tl.full(given.shape, 1.0, tl.float32),)
    return deltas, inputs, slopes


@triton.jit
def selective_scan1d_backward_kernel(
    u_ptr,  # [batch, dim, length]
    delta_ptr,  # [batch, dim, length]
    a_ptr,  # [dim, N]
    b_ptr,  # [batch, groups, N, length], or [dim, N] unless B_VARIES
    c_ptr,  # as B, by C_VARIES
    skip_ptr,  # [dim], read if HAS_SKIP
    z_ptr,  # [batch, dim, length], read if HAS_GATE
    bias_ptr,  # [dim], read if HAS_BIAS
    gradient_ptr,  # [batch, dim, length]: of the result
    of_last_ptr,  # [batch, dim, N], float32: of the last state
    dim,
    groups,
    length,
    states_ptr,  # written by the forward pass: the states before each chunk, of each block
    of_u_ptr,  # [batch, dim, length]
    of_delta_ptr,  # [batch, dim, length]
    of_z_ptr,  # [batch, dim, length], written if HAS_GATE
    of_b_ptr,  # [channel blocks, batch, groups, N, length], written if B_VARIES
    of_c_ptr,  # likewise, by C_VARIES
    of_parameters_ptr,  # [batch, dim, 3 N + 2]: A, constant B, constant C, D, bias
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
    """Differentiate BLOCK_D channels of one group of one batch element."""
    CHUNK: tl.constexpr = ROWS * STEPS
    B_STRIDE: tl.constexpr = BLOCK_N if B_VARIES else 0
    C_STRIDE: tl.constexpr = BLOCK_N if C_VARIES else 0
    batch = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    in_group = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_ok = in_group < dim // groups
    channel = group * (dim // groups) + in_group
    plane = batch * dim * length
    small = (batch * groups + group) * N * length
    partial = tl.program_id(2) * tl.num_programs(0).to(tl.int64) * groups * N * length + small
    chunks = tl.cdiv(length, CHUNK)
    row = tl.arange(0, ROWS)[None, :]
    block = (batch * groups + group) * tl.num_programs(2) + tl.program_id(2)
    local = tl.broadcast_to(tl.arange(0, BLOCK_D)[:, None], (BLOCK_D, ROWS))
    state_ptrs = states_ptr + block * chunks * N * BLOCK_D + local
    top = tl.broadcast_to(row == 0, (BLOCK_D, ROWS))

    zero = tl.zeros((BLOCK_D, ROWS), tl.float32)
    skip = tl.zeros((BLOCK_D, 1), tl.float32)
    bias = tl.zeros((BLOCK_D, 1), tl.float32)
    if HAS_SKIP:
        skip = _parameter(skip_ptr, channel, d_ok, ROWS)
    if HAS_BIAS:
        bias = _parameter(bias_ptr, channel, d_ok, ROWS)
    A = ()
    constant_b = ()
    constant_c = ()
    carry = ()
    after = ()
    of_a = ()
    of_constant_b = ()
    of_constant_c = ()
    for n in tl.static_range(N):
        A = A + (_parameter(a_ptr, channel * N + n, d_ok, ROWS) * _LOG2E,)
        carry = carry + (zero,)
        of_a = of_a + (zero,)
        of_constant_b = of_constant_b + (zero,)
        of_constant_c = of_constant_c + (zero,)
        if not B_VARIES:
            constant_b = constant_b + (_parameter(b_ptr, channel * N + n, d_ok, ROWS),)
        if not C_VARIES:
            constant_c = constant_c + (_parameter(c_ptr, channel * N + n, d_ok, ROWS),)
        of_last = _parameter(of_last_ptr + batch * dim * N, channel * N + n, d_ok, ROWS)
        after = after + (tl.where(row == ROWS - 1, of_last, 0.0),)

    for chunk in tl.range(0, chunks, num_stages=2):
        start = chunk * CHUNK
        for n in tl.static_range(N):
            tl.store(state_ptrs + (chunk * N + n) * BLOCK_D, carry[n], mask=top)
        t = start + tl.arange(0, CHUNK)[None, :]
        offset = plane + channel[:, None] * length + t
        ok = d_ok[:, None] & (t < length)
        u = _load_steps(u_ptr, offset, ok, ROWS, STEPS)
        raw = _load_steps(delta_ptr, offset, ok, ROWS, STEPS)
        if B_VARIES:
            B = _load_small(b_ptr + small, length, t, N, BLOCK_N, ROWS, STEPS)
        else:
            B = constant_b
        deltas, inputs, _ = _real_steps(raw, u, bias, start, length, ROWS, SOFTPLUS)
        # Only the states are needed: the compiler drops the output y.
        _, carry = _advance(deltas, inputs, inputs, A, B, B, carry, N, B_STRIDE, B_STRIDE, True)

    tl.debug_barrier()  # threads read what others wrote
    of_bias = zero
    of_skip = zero
    for turn in tl.range(0, chunks, num_stages=2):
        chunk = chunks - 1 - turn
        start = chunk * CHUNK
        t = start + tl.arange(0, CHUNK)[None, :]
        offset = plane + channel[:, None] * length + t
        ok = d_ok[:, None] & (t < length)
        u = _load_steps(u_ptr, offset, ok, ROWS, STEPS)
        raw = _load_steps(delta_ptr, offset, ok, ROWS, STEPS)
        gradients = _load_steps(gradient_ptr, offset, ok, ROWS, STEPS)
        if B_VARIES:
            B = _load_small(b_ptr + small, length, t, N, BLOCK_N, ROWS, STEPS)
        else:
            B = constant_b
        if C_VARIES:
            C = _load_small(c_ptr + small, length, t, N, BLOCK_N, ROWS, STEPS)
        else:
            C = constant_c
        deltas, inputs, slopes = _real_steps(raw, u, bias, start, length, ROWS, SOFTPLUS)
        if HAS_GATE:
            z = _load_steps(z_ptr, offset, ok, ROWS, STEPS)
            of_gate = ()
            inner = ()
            for i in tl.static_range(STEPS):
                open_by = tl.sigmoid(z[i])
                slope = open_by * (1.0 + z[i] * (1.0 - open_by))
                of_gate = of_gate + (gradients[i] * slope,)
                inner = inner + (gradients[i] * z[i] * open_by,)
            gradients = inner
        y = ()
        for i in tl.static_range(STEPS):
            y = y + (skip * u[i],)
        before = ()
        for n in tl.static_range(N):
            state = tl.load(state_ptrs + (chunk * N + n) * BLOCK_D, mask=top, other=0.0)
            before = before + (state,)
        of_decay, of_input, shares, of_b, of_c, y, after = _retreat(
            deltas, inputs, gradients, y, A, B, C, before, after, N, B_STRIDE, C_STRIDE, True
        )

        of_u = ()
        of_delta = ()
        for i in tl.static_range(STEPS):
            of_u = of_u + (gradients[i] * skip + deltas[i] * of_input[i],)
            of_raw = (of_decay[i] * _LN2 + of_input[i] * u[i]) * slopes[i]
            # Past the end the last state's gradient passes through: delta gets none of it.
            past = (start + tl.arange(0, ROWS) * STEPS + i >= length)[None, :]
            of_raw = tl.where(past, 0.0, of_raw)
            of_delta = of_delta + (of_raw,)
            of_bias += of_raw
            of_skip += gradients[i] * u[i]
        _store_steps(of_u_ptr, of_u, offset, ok)
        _store_steps(of_delta_ptr, of_delta, offset, ok)
        if HAS_GATE:
            of_z = ()
            for i in tl.static_range(STEPS):
                of_z = of_z + (of_gate[i] * y[i],)
            _store_steps(of_z_ptr, of_z, offset, ok)
        sums = ()
        for n in tl.static_range(N):
            sums = sums + (of_a[n] + shares[n],)
        of_a = sums
        if B_VARIES:
            _store_small(of_b_ptr + partial, of_b, start, length)
        else:
            of_constant_b = _added(of_constant_b, of_b)
        if C_VARIES:
            _store_small(of_c_ptr + partial, of_c, start, length)
        else:
            of_constant_c = _added(of_constant_c, of_c)

    out_ptrs = of_parameters_ptr + (batch * dim + channel) * (3 * N + 2)
    for n in tl.static_range(N):
        tl.store(out_ptrs + n, tl.sum(of_a[n], 1), mask=d_ok)
        tl.store(out_ptrs + N + n, tl.sum(of_constant_b[n], 1), mask=d_ok)
        tl.store(out_ptrs + 2 * N + n, tl.sum(of_constant_c[n], 1), mask=d_ok)
    tl.store(out_ptrs + 3 * N, tl.sum(of_skip, 1), mask=d_ok)
    tl.store(out_ptrs + 3 * N + 1, tl.sum(of_bias, 1), mask=d_ok)


@triton.jit
def _added(totals, shares):
    sums = ()
    for n in tl.static_range(len(totals)):
        sums = sums + (totals[n] + shares[n],)
    return sums


@triton.jit
def _store_small(ptr, parts, start, length):
    """Store a tile [ROWS, STEPS] for each state as consecutive steps of its row."""
    CHUNK: tl.constexpr = parts[0].shape[0] * parts[0].shape[1]
    t = start + tl.arange(0, CHUNK)
    for n in tl.static_range(len(parts)):
        tile = tl.reshape(parts[n], (CHUNK,)).to(ptr.dtype.element_ty)
        tl.store(ptr + n * length + t, tile, mask=t < length)


def backward_tiling(channels: int, states: int) -> Tiling:
    """Return the tiling of the backward kernel: fewer visits at a time than in the forward.

    At most 32 channels per block, one of a row in each of 256 threads: sixteen states spill less.
    """
    forward = segments(channels, states)
    steps, block_d = max(1, forward.steps // 2), min(32, forward.block_d)
    return replace(forward, steps=steps, block_d=block_d, warps=block_d // 4)


def states_size(
    tiling: Tiling, batch: int, groups: int, blocks: int, length: int, states: int
) -> int:
    """Return the number of float32 values that the forward pass stores: states before chunks."""
    return batch * groups * blocks * -(-length // tiling.chunk()) * states * tiling.block_d


def selective_scan_fn_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    gradient: Tensor,
    of_last: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the eight operands of `naive.selective_scan_fn`.

    Args:
        u: [batch, dim, length]; the operands are those of the forward.
        delta: [batch, dim, length].
        A: [dim, state].
        B: [dim, state], [batch, state, length] or [batch, groups, state, length].
        C: as B.
        D: [dim] or None.
        z: [batch, dim, length] or None.
        delta_bias: [dim] or None.
        softplus: the forward took softplus of delta.
        gradient: [batch, dim, length], the result's gradient.
        of_last: [batch, dim, state], the last state's gradient, float32.

    Returns:
        The gradients of u, delta, A, B, C, D, z and delta_bias, each of its operand's shape and
        type; None for operands that are None.
    """
    batch, dim, length = u.shape
    states = A.shape[1]
    given = (u, delta, A, B, C, D, z, delta_bias)
    if not u.numel():
        return tuple(None if t is None else torch.zeros_like(t) for t in given)
    wide_b, wide_c, groups = grouped(B, C, u, states)
    tiling = backward_tiling(dim // groups, states)
    blocks = triton.cdiv(dim // groups, tiling.block_d)
    of_u, of_delta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta))
    of_z = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    partials = [
        A.new_empty(blocks, batch, groups, states, length, dtype=torch.float32)
        if t.ndim == 4
        else None
        for t in (wide_b, wide_c)
    ]
    of_parameters = A.new_empty(batch, dim, 3 * states + 2, dtype=torch.float32)
    size = states_size(tiling, batch, groups, blocks, length, states)
    absent = u  # a placeholder that the kernel does not touch
    operands = (u, delta, A, wide_b, wide_c, D, z, delta_bias, gradient, of_last)
    selective_scan1d_backward_kernel[(batch, groups, blocks)](
        *(absent if t is None else t.contiguous() for t in operands),
        dim,
        groups,
        length,
        A.new_empty(size, dtype=torch.float32),
        of_u,
        of_delta,
        *(absent if t is None else t for t in (of_z, *partials)),
        of_parameters,
        **constants(
            tiling, states, varying(wide_b, wide_c), given_options(D, z, delta_bias, softplus)
        ),
        num_warps=tiling.warps,
        enable_fp_fusion=True,
    )
    of_A, *of_constant, of_D, of_bias = of_parameters.sum(0).split(
        (states, states, states, 1, 1), -1
    )
    of_B, of_C = (
        constant if partial is None else _of_group(partial, tensor)
        for partial, constant, tensor in zip(partials, of_constant, (B, C), strict=True)
    )
    gradients = (of_u, of_delta, of_A, of_B, of_C, of_D[:, 0], of_z, of_bias[:, 0])
    return tuple(
        None if t is None or g is None else g.to(t.dtype)
        for t, g in zip(given, gradients, strict=True)
    )


def _of_group(partial: Tensor, tensor: Tensor) -> Tensor:
    """Sum [blocks, batch, groups, N, length] over blocks, and groups that shared a B or C."""
    blocks, batch, groups, states, length = partial.shape
    own = tensor.shape[1] if tensor.ndim == 4 else 1
    shared = partial.view(blocks, batch, own, groups // own, states, length)
    return shared.sum((0, 3)).view(tensor.shape)
