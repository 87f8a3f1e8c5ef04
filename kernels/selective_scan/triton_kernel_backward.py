"""The gradient of the plane's scan in Triton: one launch over all four directions, and two sums.

Each block goes over its sequences twice: forwards, to write the state before each chunk, and back
over the chunks, each computed again from its state. README.md lists what is kept, and how long.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan.naive import parts
from uino_deploy.kernels.selective_scan.tiling import Tiling, tiling_for
from uino_deploy.kernels.selective_scan.triton_kernel import (
    _LOG2E,
    _advance,
    _columns,
    _parameter,
    _softplus,
    _stack,
)
from uino_deploy.kernels.selective_scan.triton_kernel_retreat import (
    _LN2,
    _of_small,
    _pad_and_stack,
    _retreat,
    _sigmoid,
)


@triton.jit
def _visits(
    start, sequences, first, height, width, direction,
    PARALLEL: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Return a chunk's cells [ROWS * STEPS], from the block's first sequence on, and which exist.

    Visit k is step k % STEPS of row k // STEPS; a direction is an order of the axes and a sense.
    """
    k = tl.arange(0, ROWS * STEPS)
    sequence = k * 0 if PARALLEL else k // STEPS
    t = start + (k if PARALLEL else k % STEPS)
    length = height * width
    ok = (first + sequence < sequences) & (t < length)
    t = tl.where(direction >= 2, length - 1 - t, t)
    by_column = direction % 2 == 1
    inner = tl.where(by_column, height, width)
    outer_stride = tl.where(by_column, 1, width)
    inner_stride = tl.where(by_column, width, 1)
    return sequence * length + t // inner * outer_stride + t % inner * inner_stride, ok


@triton.jit
def _by_step(tile, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Split [ROWS * STEPS, D] into STEPS tiles [D, ROWS]."""
    D: tl.constexpr = tile.shape[1]
    LOG2: tl.constexpr = STEPS.bit_length() - 1
    return _columns(tl.permute(tl.reshape(tile, (ROWS, STEPS, D)), (2, 0, 1)), LOG2)


@triton.jit
def _small_by_step(ptr, offset, ok, COUNT: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Load COUNT numbers per visit: tiles [1, ROWS], the numbers of a step one after another."""
    PADDED: tl.constexpr = triton.next_power_of_2(COUNT)
    LOG2: tl.constexpr = STEPS.bit_length() + PADDED.bit_length() - 2
    column = tl.arange(0, PADDED)[None, :]
    tile = tl.load(ptr + offset[:, None] + column, mask=ok[:, None] & (column < COUNT), other=0.0)
    return _columns(tl.reshape(tile, (1, ROWS, STEPS * PADDED)), LOG2)


@triton.jit
def _steps(
    x, dts, dt_weight, bias, start, length, sequences,
    R: tl.constexpr, BLOCK_R: tl.constexpr, PARALLEL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return delta, delta * x and softplus' derivative, each per step.

    `sequences` are those from the block's first on; delta is zero without a visit.
    """
    STEPS: tl.constexpr = len(x)
    D: tl.constexpr = x[0].shape[0]
    deltas = ()
    inputs = ()
    slopes = ()
    row = tl.arange(0, ROWS)[None, :]
    for i in tl.static_range(STEPS):
        low_rank = tl.broadcast_to(bias, (D, ROWS))
        for r in tl.static_range(R):
            low_rank += dt_weight[r] * dts[i * BLOCK_R + r].to(tl.float32)
        # Without a visit nothing decays: a growing state (A > 0) would be inf * 0.
        ok = start + i + (row * STEPS if PARALLEL else row * 0) < length
        if not PARALLEL:
            ok = ok & (row < sequences)
        delta = tl.where(ok, _softplus(low_rank), 0.0)
        deltas = deltas + (delta,)
        inputs = inputs + (delta * x[i].to(tl.float32),)
        slopes = slopes + (_sigmoid(low_rank),)
    return deltas, inputs, slopes


@triton.jit
def selective_scan2d_backward_kernel(
    x_ptr,  # [S, H, W, D]
    dt_ptr,  # [S, H, W, 4, R], rows of R dt_stride apart
    b_ptr,  # [S, H, W, 4, N], rows of N b_stride apart
    c_ptr,  # [S, H, W, 4, N], rows of N c_stride apart
    dt_weight_ptr,  # [4, D, R]
    dt_bias_ptr,  # [4, D]
    a_ptr,  # [4, D, N]
    skip_ptr,  # [4, D]
    gradient_ptr,  # [S, H, W, 4, D], or [S, H, W, D] if it is the same for all directions
    sequences,
    height,
    width,
    channels,
    dt_stride,
    b_stride,
    c_stride,
    gradient_directions,  # 4 or 1
    states_ptr,  # written by the forward pass: N tiles of states before each chunk
    of_x_ptr,  # [S, H, W, 4, D]
    of_dt_ptr,  # [channel blocks, S, H, W, 4, R]
    of_b_ptr,  # [channel blocks, S, H, W, 4, N]
    of_c_ptr,  # [channel blocks, S, H, W, 4, N]
    of_parameters_ptr,  # [groups of sequences, 4, D, R + N + 2]: dt_weight, A, dt_bias, skip
    N: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PARALLEL: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Differentiate one direction and BLOCK_D channels of one sequence (PARALLEL) or of ROWS."""
    LOG2_STEPS: tl.constexpr = STEPS.bit_length() - 1
    CHUNK: tl.constexpr = ROWS * STEPS if PARALLEL else STEPS
    TILE: tl.constexpr = BLOCK_D if PARALLEL else BLOCK_D * ROWS  # in the parallel form, row 0
    direction = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_ok = d < channels
    length = height * width
    chunks = tl.cdiv(length, CHUNK)
    first = tl.program_id(0) * (1 if PARALLEL else ROWS)
    base = first.to(tl.int64) * length
    x_ptr += base * channels
    dt_ptr += base * 4 * dt_stride
    b_ptr += base * 4 * b_stride
    c_ptr += base * 4 * c_stride
    gradient_ptr += base * gradient_directions * channels
    of_x_ptr += base * 4 * channels
    whole = tl.program_id(2).to(tl.int64) * sequences * length + base
    of_dt_ptr += whole * 4 * R
    of_b_ptr += whole * 4 * N
    of_c_ptr += whole * 4 * N
    block = (tl.program_id(0) * 4 + direction) * tl.num_programs(2) + tl.program_id(2)
    row = tl.arange(0, ROWS)[None, :]
    local = tl.arange(0, BLOCK_D)[:, None]
    tile = tl.broadcast_to(local if PARALLEL else local * ROWS + row, (BLOCK_D, ROWS))
    mine = tl.broadcast_to((row == 0) if PARALLEL else (row >= 0), (BLOCK_D, ROWS))
    state_ptrs = states_ptr + block.to(tl.int64) * chunks * N * TILE + tile

    channel = direction * channels + d
    bias = _parameter(dt_bias_ptr, channel, d_ok, ROWS)
    skip = _parameter(skip_ptr, channel, d_ok, ROWS)
    zero = tl.zeros((BLOCK_D, ROWS), tl.float32)
    A = ()
    carry = ()
    of_a = ()
    after = ()
    for n in tl.static_range(N):
        A = A + (_parameter(a_ptr, channel * N + n, d_ok, ROWS) * _LOG2E,)
        carry = carry + (zero,)
        of_a = of_a + (zero,)
        after = after + (zero,)
    dt_weight = ()
    of_weight = ()
    for r in tl.static_range(R):
        dt_weight = dt_weight + (_parameter(dt_weight_ptr, channel * R + r, d_ok, ROWS),)
        of_weight = of_weight + (zero,)

    for chunk in tl.range(0, chunks, num_stages=2):
        start = chunk * CHUNK
        for n in tl.static_range(N):
            tl.store(state_ptrs + (chunk * N + n) * TILE, carry[n], mask=mine)
        cell, ok = _visits(start, sequences, first, height, width, direction, PARALLEL, ROWS, STEPS)
        x_ok = ok[:, None] & d_ok[None, :]
        x_tile = tl.load(x_ptr + cell[:, None] * channels + d[None, :], mask=x_ok, other=0.0)
        x = _by_step(x_tile, ROWS, STEPS)
        place = cell * 4 + direction
        dts = _small_by_step(dt_ptr, place * dt_stride, ok, R, ROWS, STEPS)
        B = _small_by_step(b_ptr, place * b_stride, ok, N, ROWS, STEPS)
        deltas, inputs, _ = _steps(
            x, dts, dt_weight, bias, start, length, sequences - first, R, BLOCK_R, PARALLEL, ROWS
        )
        # Only the states are needed: the compiler drops the output y.
        _, carry = _advance(deltas, inputs, inputs, A, B, B, carry, N, BLOCK_N, BLOCK_N, PARALLEL)

    tl.debug_barrier()  # threads read what others wrote
    of_bias = zero
    of_skip = zero
    for turn in tl.range(0, chunks, num_stages=2):
        chunk = chunks - 1 - turn
        start = chunk * CHUNK
        cell, ok = _visits(start, sequences, first, height, width, direction, PARALLEL, ROWS, STEPS)
        x_ok = ok[:, None] & d_ok[None, :]
        place = cell * 4 + direction
        x_tile = tl.load(x_ptr + cell[:, None] * channels + d[None, :], mask=x_ok, other=0.0)
        seen = cell * gradient_directions + direction % gradient_directions
        gradient_ptrs = gradient_ptr + seen[:, None] * channels + d[None, :]
        gradient_tile = tl.load(gradient_ptrs, mask=x_ok, other=0.0).to(tl.float32)
        x = _by_step(x_tile, ROWS, STEPS)
        gradients = _by_step(gradient_tile, ROWS, STEPS)
        dts = _small_by_step(dt_ptr, place * dt_stride, ok, R, ROWS, STEPS)
        B = _small_by_step(b_ptr, place * b_stride, ok, N, ROWS, STEPS)
        C = _small_by_step(c_ptr, place * c_stride, ok, N, ROWS, STEPS)
        deltas, inputs, slopes = _steps(
            x, dts, dt_weight, bias, start, length, sequences - first, R, BLOCK_R, PARALLEL, ROWS
        )
        before = ()
        for n in tl.static_range(N):
            state = tl.load(state_ptrs + (chunk * N + n) * TILE, mask=mine, other=0.0)
            before = before + (state,)
        of_delta, of_input, shares, of_b, of_c, _, after = _retreat(
            deltas, inputs, gradients, inputs, A, B, C, before, after,
            N, BLOCK_N, BLOCK_N, PARALLEL,
        )  # fmt: skip

        sums = ()
        for n in tl.static_range(N):
            sums = sums + (of_a[n] + shares[n],)
        of_a = sums
        of_x = ()
        raised = ()
        for i in tl.static_range(STEPS):
            x_i = x[i].to(tl.float32)
            of_x = of_x + (gradients[i] * skip + deltas[i] * of_input[i],)
            of_raised = (of_delta[i] * _LN2 + of_input[i] * x_i) * slopes[i]
            raised = raised + (of_raised,)
            of_bias += of_raised
            of_skip += gradients[i] * x_i
        of_dt = ()
        sums = ()
        for r in tl.static_range(R):
            through = ()
            total = zero
            for i in tl.static_range(STEPS):
                through = through + (raised[i] * dt_weight[r],)
                total += raised[i] * dts[i * BLOCK_R + r].to(tl.float32)
            of_dt = of_dt + (_of_small(through, True),)
            sums = sums + (of_weight[r] + total,)
        of_weight = sums

        out = _stack(of_x, LOG2_STEPS).to(of_x_ptr.dtype.element_ty)
        out = tl.reshape(tl.permute(out, (1, 2, 0)), (ROWS * STEPS, BLOCK_D))
        tl.store(of_x_ptr + place[:, None] * channels + d[None, :], out, mask=x_ok)
        _store_small(of_dt_ptr, of_dt, place, ok, R, BLOCK_R)
        _store_small(of_b_ptr, of_b, place, ok, N, BLOCK_N)
        _store_small(of_c_ptr, of_c, place, ok, N, BLOCK_N)

    group = tl.program_id(0).to(tl.int64) * 4 * channels
    out_ptrs = of_parameters_ptr + (group + channel) * (R + N + 2)
    for r in tl.static_range(R):
        tl.store(out_ptrs + r, tl.sum(of_weight[r], 1), mask=d_ok)
    for n in tl.static_range(N):
        tl.store(out_ptrs + R + n, tl.sum(of_a[n], 1), mask=d_ok)
    tl.store(out_ptrs + R + N, tl.sum(of_bias, 1), mask=d_ok)
    tl.store(out_ptrs + R + N + 1, tl.sum(of_skip, 1), mask=d_ok)


@triton.jit
def _store_small(ptr, parts, place, ok, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Store COUNT tiles [ROWS, STEPS] as rows of COUNT numbers, one row per visit."""
    tile = _pad_and_stack(parts, PADDED.bit_length() - 1).to(ptr.dtype.element_ty)
    column = tl.arange(0, PADDED)[None, :]
    tile = tl.reshape(tile, (place.shape[0], PADDED))
    tl.store(ptr + place[:, None] * COUNT + column, tile, mask=ok[:, None] & (column < COUNT))


def backward_tiling(sequences: int, length: int, channels: int, states: int) -> Tiling:
    """Return the tiling of the backward kernel: the forward's form, fewer visits at a time.

    A visit holds about three times as much as in the forward. Serial, each of a block's 256 threads
    has a channel of a sequence; parallel, a block has as many rows as a warp can join.
    """
    forward = tiling_for(sequences, length, channels, states)
    warps = min(8, 2 * forward.warps)
    if forward.parallel:
        return replace(forward, steps=max(1, forward.steps // 2), warps=warps)
    return replace(forward, rows=32 * warps // forward.block_d, warps=warps)


def selective_scan2d_backward(
    x: Tensor,
    packed: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    skip: Tensor,
    gradient: Tensor,
    tiling: Tiling | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the six operands of `naive.selective_scan2d`.

    Args:
        x: [S, H, W, D], float32, float16 or bfloat16; the operands are those of the forward.
        packed: [S, H, W, 4, P], x's type.
        dt_weight: [4, D, R], float32.
        dt_bias: [4, D], float32.
        A: [4, D, N], float32.
        skip: [4, D], float32.
        gradient: [S, H, W, D], x's type, the result's gradient.
        tiling: the variant; that of `backward_tiling` if None.

    Returns:
        The gradients of x, packed, dt_weight, dt_bias, A and skip, each of its operand's shape
        and type.
    """
    operands = (x, packed, dt_weight, dt_bias, A, skip)
    if not x.numel():
        return tuple(torch.zeros_like(t) for t in operands)
    sequences, height, width, channels = x.shape
    states, rank = A.shape[-1], dt_weight.shape[-1]
    tiling = tiling or backward_tiling(sequences, height * width, channels, states)
    grid = tiling.grid(sequences, channels)
    small = [_by_row(t) for t in parts(packed, dt_weight, A)]
    of_x = x.new_empty(sequences, height, width, DIRECTIONS, channels)
    # One block with all channels has the whole sum; otherwise the blocks' sums are added.
    narrow = x.dtype if grid[2] == 1 else torch.float32
    of_small = [x.new_empty(grid[2], *t.shape, dtype=narrow) for t in parts(packed, dt_weight, A)]
    sizes = (rank, states, 1, 1)
    of_parameters = dt_weight.new_empty(grid[0], DIRECTIONS, channels, sum(sizes))
    selective_scan2d_backward_kernel[grid](
        x.contiguous(),
        *small,
        *(t.contiguous() for t in operands[2:]),
        gradient.contiguous(),
        sequences,
        height,
        width,
        channels,
        *(t.stride(0) for t in small),
        1,
        dt_weight.new_empty(states_size(tiling, sequences, height * width, channels, states)),
        of_x,
        *of_small,
        of_parameters,
        **tiling.constants(states, rank),
        num_warps=tiling.warps,
        enable_fp_fusion=True,
    )
    of_packed = torch.cat([t[0] if grid[2] == 1 else t.sum(0).to(x.dtype) for t in of_small], -1)
    of_packed = F.pad(of_packed, (0, packed.shape[-1] - of_packed.shape[-1]))
    of_weight, of_A, of_bias, of_skip = of_parameters.sum(0).split(sizes, -1)
    return of_x.sum(3), of_packed, of_weight, of_bias[..., 0], of_A, of_skip[..., 0]


def states_size(tiling: Tiling, sequences: int, length: int, channels: int, states: int) -> int:
    """Return the number of float32 values that the forward pass stores: states before chunks."""
    groups, directions, blocks = tiling.grid(sequences, channels)
    tile = tiling.block_d * (1 if tiling.parallel else tiling.rows)
    return groups * directions * blocks * -(-length // tiling.chunk()) * states * tile


def _by_row(tensor: Tensor) -> Tensor:
    """[S, H, W, 4, C] -> [S*H*W*4, C], each row's numbers contiguous; a view if possible."""
    rows = tensor.flatten(0, 3)
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
