"""One chunk of the recurrence backwards: what both scans' backward kernels share.

The states inside a chunk are computed again from the one before it; then their gradients walk
back. With a_t = exp(delta_t A), h_t = a_t h_(t-1) + delta_t x_t B_t and y_t = C_t h_t, the gradient
of h_t is g_t = C_t dy_t + a_(t+1) g_(t+1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from uino_deploy.kernels.selective_scan.triton_kernel import _LOG2E, _stack, _then

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _sigmoid(value):
    """The derivative of softplus, from the exponential that `_softplus` also takes."""
    e = tl.exp2(-tl.abs(value) * _LOG2E)
    return tl.where(value < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def _join_rows(decay, state, edge, FORWARD: tl.constexpr):
    """Carry a value across the segments that the rows are, first to last or last to first.

    Args:
        decay: [D, ROWS], what a row multiplies by what enters it.
        state: [D, ROWS], what a row adds.
        edge: [D, ROWS], what enters the row where the way begins; zero in the others.
        FORWARD: the way is first to last.

    Returns:
        What enters each row, and what leaves the last one on the way, put as `edge` is.
    """
    D: tl.constexpr = decay.shape[0]
    ROWS: tl.constexpr = decay.shape[1]
    row = tl.arange(0, ROWS)
    _, state = tl.associative_scan((decay, decay * edge + state), 1, _then, reverse=not FORWARD)
    neighbour = (row + ROWS - 1) % ROWS if FORWARD else (row + 1) % ROWS
    turned = tl.gather(state, tl.broadcast_to(neighbour[None, :], (D, ROWS)), 1)
    begins = (row == (0 if FORWARD else ROWS - 1))[None, :]
    return tl.where(begins, edge, turned), tl.where(begins, turned, 0.0)


@triton.jit
def _retreat(
    deltas,  # per step, [D, ROWS]
    inputs,  # per step, delta * x
    gradients,  # per step, of y
    y,  # per step, what the skip adds
    A,  # per state, [D, 1], times log2(e)
    B,  # per step and state, [1, ROWS] or [D, 1]
    C,  # likewise
    before,  # per state, [D, ROWS]: the state before the chunk (parallel: in row 0)
    after,  # likewise the gradient that enters from the chunk after it (parallel: in the last row)
    N: tl.constexpr,
    B_STRIDE: tl.constexpr,  # 0 where B is constant, as in `_advance`
    C_STRIDE: tl.constexpr,
    PARALLEL: tl.constexpr,
):
    """Go back over one chunk.

    Returns:
        of_delta: per step, the gradient of delta through the decay only, times log2(e).
        of_input: per step, the gradient of delta * x.
        of_a: per state, [D, ROWS]: the chunk's share of the gradient of A.
        of_b: per state: summed over the channels [ROWS, STEPS], or for a constant B over the steps
            [D, ROWS].
        of_c: likewise.
        y: per step, with the states' part added.
        after: for the chunk before.
    """
    STEPS: tl.constexpr = len(deltas)
    D: tl.constexpr = deltas[0].shape[0]
    ROWS: tl.constexpr = deltas[0].shape[1]
    zero = tl.zeros((D, ROWS), tl.float32)
    of_delta = ()
    of_input = ()
    for _ in tl.static_range(STEPS):
        of_delta = of_delta + (zero,)
        of_input = of_input + (zero,)
    of_a = ()
    of_b = ()
    of_c = ()
    next_after = ()
    for n in tl.static_range(N):
        decays = ()
        for i in tl.static_range(STEPS):
            decays = decays + (tl.exp2(deltas[i] * A[n]),)
        state = before[n]
        later = after[n]
        leaving = later
        if PARALLEL:
            decay = zero + 1.0
            grown = zero
            back = zero
            for i in tl.static_range(STEPS):
                decay = decay * decays[i]
                grown = decays[i] * grown + inputs[i] * B[i * B_STRIDE + n].to(tl.float32)
            for i in tl.static_range(STEPS - 1, -1, -1):
                back = decays[i] * (gradients[i] * C[i * C_STRIDE + n].to(tl.float32) + back)
            state, _ = _join_rows(decay, grown, state, True)
            later, leaving = _join_rows(decay, back, later, False)

        kept = ()
        through_c = ()
        summed = ()
        for i in tl.static_range(STEPS):
            kept = kept + (decays[i] * state,)
            state = kept[i] + inputs[i] * B[i * B_STRIDE + n].to(tl.float32)
            through_c = through_c + (gradients[i] * state,)
            summed = summed + (y[i] + state * C[i * C_STRIDE + n].to(tl.float32),)
        y = summed

        through_b = ()
        more_delta = ()
        more_input = ()
        share = zero
        for i in tl.static_range(STEPS - 1, -1, -1):
            of_state = gradients[i] * C[i * C_STRIDE + n].to(tl.float32) + later
            of_decay = of_state * kept[i]
            share += of_decay * deltas[i]
            through_b = (of_state * inputs[i],) + through_b
            more_delta = (of_delta[i] + of_decay * A[n],) + more_delta
            more_input = (of_input[i] + of_state * B[i * B_STRIDE + n].to(tl.float32),) + more_input
            later = decays[i] * of_state
        of_delta = more_delta
        of_input = more_input
        of_a = of_a + (share,)
        of_b = of_b + (_of_small(through_b, B_STRIDE),)
        of_c = of_c + (_of_small(through_c, C_STRIDE),)
        next_after = next_after + (leaving if PARALLEL else later,)
    return of_delta, of_input, of_a, of_b, of_c, y, next_after


@triton.jit
def _of_small(parts, VARIES: tl.constexpr):
    """Sum tiles [D, ROWS], one a step, over the channels into [ROWS, STEPS], or over the steps."""
    STEPS: tl.constexpr = len(parts)
    if VARIES:
        total = tl.sum(_stack(parts, STEPS.bit_length() - 1), 0)
    else:
        total = parts[0]
        for i in tl.static_range(1, STEPS):
            total += parts[i]
    return total


@triton.jit
def _pad_and_stack(parts, LOG2: tl.constexpr):
    """Put tiles [ROWS, STEPS] together into [ROWS, STEPS, 2**LOG2], zeros after the last."""
    padded = parts
    for _ in tl.static_range(2**LOG2 - len(parts)):
        padded = padded + (tl.zeros_like(parts[0]),)
    return _stack(padded, LOG2)
