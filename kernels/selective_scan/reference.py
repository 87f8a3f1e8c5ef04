"""SelectiveScan2d in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

import numpy as np

from uino_deploy.kernels.numpy_parts import Array, Float64


def selective_scan2d(
    x: Array, packed: Array, dt_weight: Array, dt_bias: Array, a: Array, skip: Array
) -> Float64:
    """Scan planes row-major, column-major and both reversed, each with its own state; add them.

    Args:
        x: [S, H, W, D].
        packed: [S, H, W, 4, P]: dt (R columns), B (N) and C (N) of each direction, then padding.
        dt_weight: [4, D, R].
        dt_bias: [4, D].
        a: [4, D, N], negative.
        skip: [4, D].

    Returns:
        [S, H, W, D], at each cell the sum of the directions' outputs.
    """
    sequences, height, width, channels = x.shape
    rank, states = dt_weight.shape[2], a.shape[2]
    flat = x.astype(np.float64).reshape(sequences, -1, channels)
    rows = packed.astype(np.float64).reshape(*flat.shape[:2], len(skip), -1)
    low, inputs, outputs, _ = np.split(rows, np.cumsum([rank, states, states]), axis=-1)
    y = flat * skip.sum(0)
    by_row = np.arange(height * width)
    by_column = by_row.reshape(height, width).T.ravel()
    orders = (by_row, by_column, by_row[::-1], by_column[::-1])
    for direction, order in enumerate(orders):
        state = np.zeros((sequences, channels, states))
        for cell in order:
            raw = low[:, cell, direction] @ dt_weight[direction].T + dt_bias[direction]
            delta = np.logaddexp(0, raw)[:, :, None]
            new = delta * flat[:, cell, :, None] * inputs[:, cell, direction, None, :]
            state = np.exp(delta * a[direction]) * state + new
            y[:, cell] += (state * outputs[:, cell, direction, None, :]).sum(-1)
    return y.reshape(x.shape)
