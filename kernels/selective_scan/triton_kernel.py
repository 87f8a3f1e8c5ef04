"""The selective scan of a plane in Triton: four directions in one launch, states in registers.

States are tiles [channels, rows]. A row is one sequence or, if sequences are few and long, one of
the segments into which a chunk of time is cut; README.md says when and why.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels.selective_scan.tiling import Tiling, tiling_for

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _then(first_decay, first_state, decay, state):
    """Compose two stretches of the recurrence, the earlier one first."""
    return first_decay * decay, decay * first_state + state


@triton.jit
def _columns(tile, LOG2: tl.constexpr):
    """Split [D, ROWS, 2**LOG2] into 2**LOG2 tiles [D, ROWS], each held by the same threads."""
    D: tl.constexpr = tile.shape[0]
    ROWS: tl.constexpr = tile.shape[1]
    parts = (tile,)
    for level in tl.static_range(LOG2):
        even = ()
        odd = ()
        for j in tl.static_range(len(parts)):
            pairs = tl.reshape(parts[j], (D, ROWS, 2 ** (LOG2 - level - 1), 2))
            zeros, ones = tl.split(pairs)
            even = even + (zeros,)
            odd = odd + (ones,)
        parts = even + odd
    out = ()
    for j in tl.static_range(len(parts)):
        out = out + (tl.reshape(parts[j], (D, ROWS)),)
    return out


@triton.jit
def _stack(parts, LOG2: tl.constexpr):
    """Join 2**LOG2 tiles [D, ROWS] into one [D, ROWS, 2**LOG2]; the inverse of `_columns`."""
    D: tl.constexpr = parts[0].shape[0]
    ROWS: tl.constexpr = parts[0].shape[1]
    for level in tl.static_range(LOG2):
        joined = ()
        for j in tl.static_range(2 ** (LOG2 - level - 1)):
            joined = joined + (tl.join(parts[j], parts[j + 2 ** (LOG2 - level - 1)]),)
        parts = joined
    return tl.reshape(parts[0], (D, ROWS, 2**LOG2))


@triton.jit
def _softplus(value):
    """Return log(1 + exp(value)) to 2e-7 of its size, small results included.

    log1p(e) / e on [0, 1] is a Chebyshev fit of degree 8: a logarithm of 1 + e would lose the low
    bits of a small e, and costs more instructions.
    """
    e = tl.exp2(-tl.abs(value) * _LOG2E)
    fit = 0.005253457929939032 * e - 0.02958850748836994
    fit = fit * e + 0.07836166769266129
    fit = fit * e - 0.13674770295619965
    fit = fit * e + 0.19111430644989014
    fit = fit * e - 0.24844369292259216
    fit = fit * e + 0.33319270610809326
    fit = fit * e - 0.49999502301216125
    fit = fit * e + 1.0
    return tl.maximum(value, 0.0) + e * fit


@triton.jit
def _parameter(ptr, offset, ok, ROWS: tl.constexpr):
    """Read one float per channel as [D, 1].

    Only the threads of the first row read memory; a sum over the rows hands the value on.
    """
    first = tl.arange(0, ROWS)[None, :] == 0
    ptrs = tl.broadcast_to(ptr + offset[:, None], (offset.shape[0], ROWS))
    return tl.sum(tl.load(ptrs, mask=ok[:, None] & first, other=0.0).to(tl.float32), 1)[:, None]


@triton.jit
def _advance(
    deltas,  # per step, [D, ROWS]
    inputs,  # per step, delta * x
    y,  # per step, what the skip adds
    A,  # per state, [D, 1], times log2(e)
    B,  # per step and state, [1, ROWS] or [D, 1]
    C,  # likewise
    carry,  # per state, [D, ROWS]: the state before the chunk (parallel: in row 0, zero elsewhere)
    N: tl.constexpr,
    B_STRIDE: tl.constexpr,
    C_STRIDE: tl.constexpr,
    PARALLEL: tl.constexpr,
):
    """Run one chunk of the recurrence; return y with the states' part added, and the next carry."""
    STEPS: tl.constexpr = len(deltas)
    D: tl.constexpr = deltas[0].shape[0]
    ROWS: tl.constexpr = deltas[0].shape[1]
    next_carry = ()
    for n in tl.static_range(N):
        summed = ()
        if PARALLEL:
            # Each row runs its segment from a zero state and keeps what a start state is worth.
            decay = tl.full((D, ROWS), 1.0, tl.float32)
            state = tl.zeros((D, ROWS), tl.float32)
            decays = ()
            states = ()
            for i in tl.static_range(STEPS):
                step = tl.exp2(deltas[i] * A[n])
                decay = decay * step
                state = step * state + inputs[i] * B[i * B_STRIDE + n].to(tl.float32)
                decays = decays + (decay,)
                states = states + (state,)
            state = decay * carry[n] + state
            decay, state = tl.associative_scan((decay, state), 1, _then)
            # Rotate the rows by one: each gets the state that its segment starts from, and
            # row 0 the one that the next chunk starts from.
            row = tl.arange(0, ROWS)
            before = tl.broadcast_to(((row + ROWS - 1) % ROWS)[None, :], (D, ROWS))
            turned = tl.gather(state, before, 1)
            top = (row == 0)[None, :]
            start = tl.where(top, carry[n], turned)
            next_carry = next_carry + (tl.where(top, turned, 0.0),)
            for i in tl.static_range(STEPS):
                now = states[i] + decays[i] * start
                summed = summed + (y[i] + now * C[i * C_STRIDE + n].to(tl.float32),)
        else:
            state = carry[n]
            for i in tl.static_range(STEPS):
                step = tl.exp2(deltas[i] * A[n])
                state = step * state + inputs[i] * B[i * B_STRIDE + n].to(tl.float32)
                summed = summed + (y[i] + state * C[i * C_STRIDE + n].to(tl.float32),)
            next_carry = next_carry + (state,)
        y = summed
    return y, next_carry


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
def _small_by_step(tile, ROWS: tl.constexpr, STEPS: tl.constexpr, P: tl.constexpr):
    """Split [ROWS * STEPS, P] into tiles [1, ROWS]: the P numbers of a step, step after step."""
    LOG2: tl.constexpr = STEPS.bit_length() + P.bit_length() - 2
    return _columns(tl.reshape(tile, (1, ROWS, STEPS * P)), LOG2)


@triton.jit
def _tail(packed, FIRST: tl.constexpr):
    """Return the tiles from one on."""
    out = ()
    for i in tl.static_range(FIRST, len(packed)):
        out = out + (packed[i],)
    return out


@triton.jit
def selective_scan2d_kernel(
    x_ptr,  # [S, H, W, D]
    packed_ptr,  # [S, H, W, 4, P]
    dt_weight_ptr,  # [4, D, R]
    dt_bias_ptr,  # [4, D]
    a_ptr,  # [4, D, N]
    skip_ptr,  # [4, D]
    sequences,
    height,
    width,
    channels,
    y_ptr,  # [S, H, W, D]
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PARALLEL: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Scan BLOCK_D channels of one sequence (PARALLEL) or of ROWS of them, in four directions."""
    CHUNK: tl.constexpr = ROWS * STEPS if PARALLEL else STEPS
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_ok = d < channels
    length = height * width
    first = tl.program_id(0) * (1 if PARALLEL else ROWS)
    base = first.to(tl.int64) * length
    x_ptr += base * channels
    packed_ptr += base * 4 * P
    y_ptr += base * channels
    column = tl.arange(0, BLOCK_P)[None, :]

    for direction in tl.range(0, 4, loop_unroll_factor=1):
        channel = direction * channels + d
        bias = _parameter(dt_bias_ptr, channel, d_ok, ROWS)
        skip = _parameter(skip_ptr, channel, d_ok, ROWS)
        A = ()
        carry = ()
        for n in tl.static_range(N):
            A = A + (_parameter(a_ptr, channel * N + n, d_ok, ROWS) * _LOG2E,)
            carry = carry + (tl.zeros((BLOCK_D, ROWS), tl.float32),)
        dt_weight = ()
        for r in tl.static_range(R):
            dt_weight = dt_weight + (_parameter(dt_weight_ptr, channel * R + r, d_ok, ROWS),)

        # Two stages: the next chunk is on its way into shared memory while this one is computed.
        # That holds for y too: a direction visits each cell once, so what is fetched early is what
        # the directions before this one left, behind the barrier that ends each of them.
        for start in tl.range(0, length, CHUNK, num_stages=2):
            cell, ok = _visits(
                start, sequences, first, height, width, direction, PARALLEL, ROWS, STEPS
            )
            at = cell[:, None] * channels + d[None, :]
            here = ok[:, None] & d_ok[None, :]
            x_tile = tl.load(x_ptr + at, mask=here, other=0.0)
            row = packed_ptr + (cell * 4 + direction)[:, None] * P + column
            packed_tile = tl.load(row, mask=ok[:, None] & (column < P), other=0.0)
            y_tile = tl.load(y_ptr + at, mask=here & (direction > 0), other=0.0)

            x = _by_step(x_tile, ROWS, STEPS)
            packed = _small_by_step(packed_tile, ROWS, STEPS, BLOCK_P)
            deltas = ()
            inputs = ()
            y = ()
            for i in tl.static_range(STEPS):
                low_rank = tl.broadcast_to(bias, (BLOCK_D, ROWS))
                for r in tl.static_range(R):
                    low_rank += dt_weight[r] * packed[i * BLOCK_P + r].to(tl.float32)
                delta = _softplus(low_rank)
                x_i = x[i].to(tl.float32)
                deltas = deltas + (delta,)
                inputs = inputs + (delta * x_i,)
                y = y + (skip * x_i,)
            B = _tail(packed, R)
            C = _tail(packed, R + N)
            y, carry = _advance(deltas, inputs, y, A, B, C, carry, N, BLOCK_P, BLOCK_P, PARALLEL)
            out = _stack(y, STEPS.bit_length() - 1)
            out = tl.reshape(tl.permute(out, (1, 2, 0)), (ROWS * STEPS, BLOCK_D))
            out = (y_tile.to(tl.float32) + out).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + at, out, mask=here)
        tl.debug_barrier()  # the next direction adds to what other threads stored


def selective_scan2d(
    x: Tensor,
    packed: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    skip: Tensor,
    tiling: Tiling | None = None,
) -> Tensor:
    """Launch the kernel; shapes and mathematics are those of `naive.selective_scan2d`.

    Args:
        x: [S, H, W, D], float32, float16 or bfloat16; non-contiguous inputs are copied.
        packed: [S, H, W, 4, P], x's type.
        dt_weight: [4, D, R], float32.
        dt_bias: [4, D], float32.
        A: [4, D, N], float32.
        skip: [4, D], float32.
        tiling: the variant; `tiling_for` chooses if None.

    Returns:
        y: [S, H, W, D] of x's type.
    """
    sequences, height, width, channels = x.shape
    if tiling is None:
        tiling = tiling_for(sequences, height * width, channels, A.shape[-1])
        tiling = tiling.of_type(x.element_size())
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    selective_scan2d_kernel[tiling.grid(sequences, channels)](
        *(t.contiguous() for t in (x, packed, dt_weight, dt_bias, A, skip)),
        sequences,
        height,
        width,
        channels,
        y,
        **tiling.constants(A.shape[-1], dt_weight.shape[-1], packed.shape[-1]),
        num_warps=tiling.warps,
        enable_fp_fusion=True,
    )
    return y
