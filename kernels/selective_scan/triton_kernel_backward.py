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

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan.tiling import ENOUGH_WARPS, Tiling, segments
from uino_deploy.kernels.selective_scan.triton_kernel import (
    _LOG2E,
    _advance,
    _by_step,
    _parameter,
    _small_by_step,
    _softplus,
    _stack,
    _tail,
    _visits,
)
from uino_deploy.kernels.selective_scan.triton_kernel_retreat import (
    _LN2,
    _of_small,
    _pad_and_stack,
    _retreat,
    _sigmoid,
)


@triton.jit
def _steps(
    x, packed, dt_weight, bias, start, length, sequences,
    R: tl.constexpr, BLOCK_P: tl.constexpr, PARALLEL: tl.constexpr, ROWS: tl.constexpr,
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
            low_rank += dt_weight[r] * packed[i * BLOCK_P + r].to(tl.float32)
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
    packed_ptr,  # [S, H, W, 4, P]
    dt_weight_ptr,  # [4, D, R]
    dt_bias_ptr,  # [4, D]
    a_ptr,  # [4, D, N]
    skip_ptr,  # [4, D]
    gradient_ptr,  # [S, H, W, D]
    sequences,
    height,
    width,
    channels,
    states_ptr,  # written by the forward pass: N tiles of states before each chunk
    of_x_ptr,  # [S, H, W, 4, D]
    of_packed_ptr,  # [channel blocks, S, H, W, 4, P]
    of_parameters_ptr,  # [groups of sequences, 4, D, R + N + 2]: dt_weight, A, dt_bias, skip
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
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
    packed_ptr += base * 4 * P
    gradient_ptr += base * channels
    of_x_ptr += base * 4 * channels
    whole = tl.program_id(2).to(tl.int64) * sequences * length + base
    of_packed_ptr += whole * 4 * P
    column = tl.arange(0, BLOCK_P)[None, :]
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
        row_ptrs = packed_ptr + (cell * 4 + direction)[:, None] * P + column
        small = tl.load(row_ptrs, mask=ok[:, None] & (column < P), other=0.0)
        packed = _small_by_step(small, ROWS, STEPS, BLOCK_P)
        B = _tail(packed, R)
        deltas, inputs, _ = _steps(
            x, packed, dt_weight, bias, start, length, sequences - first, R, BLOCK_P, PARALLEL, ROWS
        )
        # Only the states are needed: the compiler drops the output y.
        _, carry = _advance(deltas, inputs, inputs, A, B, B, carry, N, BLOCK_P, BLOCK_P, PARALLEL)

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
        gradient_ptrs = gradient_ptr + cell[:, None] * channels + d[None, :]
        gradient_tile = tl.load(gradient_ptrs, mask=x_ok, other=0.0).to(tl.float32)
        x = _by_step(x_tile, ROWS, STEPS)
        gradients = _by_step(gradient_tile, ROWS, STEPS)
        row_ptrs = place[:, None] * P + column
        row_ok = ok[:, None] & (column < P)
        small = tl.load(packed_ptr + row_ptrs, mask=row_ok, other=0.0)
        packed = _small_by_step(small, ROWS, STEPS, BLOCK_P)
        B = _tail(packed, R)
        C = _tail(packed, R + N)
        deltas, inputs, slopes = _steps(
            x, packed, dt_weight, bias, start, length, sequences - first, R, BLOCK_P, PARALLEL, ROWS
        )
        before = ()
        for n in tl.static_range(N):
            state = tl.load(state_ptrs + (chunk * N + n) * TILE, mask=mine, other=0.0)
            before = before + (state,)
        of_delta, of_input, shares, of_b, of_c, _, after = _retreat(
            deltas, inputs, gradients, inputs, A, B, C, before, after,
            N, BLOCK_P, BLOCK_P, PARALLEL,
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
                total += raised[i] * packed[i * BLOCK_P + r].to(tl.float32)
            of_dt = of_dt + (_of_small(through, True),)
            sums = sums + (of_weight[r] + total,)
        of_weight = sums

        out = _stack(of_x, LOG2_STEPS).to(of_x_ptr.dtype.element_ty)
        out = tl.reshape(tl.permute(out, (1, 2, 0)), (ROWS * STEPS, BLOCK_D))
        tl.store(of_x_ptr + place[:, None] * channels + d[None, :], out, mask=x_ok)
        small = _pad_and_stack(of_dt + of_b + of_c, BLOCK_P.bit_length() - 1)
        small = tl.reshape(small, (ROWS * STEPS, BLOCK_P)).to(of_packed_ptr.dtype.element_ty)
        tl.store(of_packed_ptr + row_ptrs, small, mask=row_ok)

    group = tl.program_id(0).to(tl.int64) * 4 * channels
    out_ptrs = of_parameters_ptr + (group + channel) * (R + N + 2)
    for r in tl.static_range(R):
        tl.store(out_ptrs + r, tl.sum(of_weight[r], 1), mask=d_ok)
    for n in tl.static_range(N):
        tl.store(out_ptrs + R + n, tl.sum(of_a[n], 1), mask=d_ok)
    tl.store(out_ptrs + R + N, tl.sum(of_bias, 1), mask=d_ok)
    tl.store(out_ptrs + R + N + 1, tl.sum(of_skip, 1), mask=d_ok)


def backward_tiling(sequences: int, length: int, channels: int, states: int) -> Tiling:
    """Return the tiling of the backward kernel, whose programs are its directions too.

    A visit holds about three times as much as in the forward. Serial, each of a block's 256 threads
    has a channel of a sequence; parallel, a block has as many rows as a warp can join.
    """
    rows = segments(channels, states)
    warps, steps = min(8, 2 * rows.warps), max(1, rows.steps // 2)
    serial = Tiling(False, 32 * warps // rows.block_d, steps, rows.block_d, warps)
    parallel = replace(rows, steps=steps, warps=warps)
    groups, directions, blocks = grid_of(serial, sequences, channels)
    filled = groups * directions * blocks * warps >= ENOUGH_WARPS
    return serial if filled or length < 2 * parallel.chunk() else parallel


def grid_of(tiling: Tiling, sequences: int, channels: int) -> tuple[int, int, int]:
    """Return the launch grid: (sequences, directions, channel blocks)."""
    groups, blocks, _ = tiling.grid(sequences, channels)
    return groups, DIRECTIONS, blocks


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
    states, rank, packed_width = A.shape[-1], dt_weight.shape[-1], packed.shape[-1]
    tiling = tiling or backward_tiling(sequences, height * width, channels, states)
    grid = grid_of(tiling, sequences, channels)
    of_x = x.new_empty(sequences, height, width, DIRECTIONS, channels)
    # One block with all channels has the whole sum; otherwise the blocks' sums are added.
    whole = grid[2] == 1
    kind = x.dtype if whole else torch.float32
    of_packed = x.new_empty(grid[2], *packed.shape, dtype=kind)
    sizes = (rank, states, 1, 1)
    of_parameters = dt_weight.new_empty(grid[0], DIRECTIONS, channels, sum(sizes))
    selective_scan2d_backward_kernel[grid](
        *(t.contiguous() for t in (*operands, gradient)),
        sequences,
        height,
        width,
        channels,
        dt_weight.new_empty(states_size(tiling, sequences, height * width, channels, states)),
        of_x,
        of_packed,
        of_parameters,
        **tiling.constants(states, rank, packed_width),
        num_warps=tiling.warps,
        enable_fp_fusion=True,
    )
    of_packed = of_packed[0] if whole else of_packed.sum(0).to(x.dtype)
    of_weight, of_A, of_bias, of_skip = of_parameters.sum(0).split(sizes, -1)
    return of_x.sum(3), of_packed, of_weight, of_bias[..., 0], of_A, of_skip[..., 0]


def states_size(tiling: Tiling, sequences: int, length: int, channels: int, states: int) -> int:
    """Return the number of float32 values that the forward pass stores: states before chunks."""
    groups, directions, blocks = grid_of(tiling, sequences, channels)
    tile = tiling.block_d * (1 if tiling.parallel else tiling.rows)
    return groups * directions * blocks * -(-length // tiling.chunk()) * states * tile
