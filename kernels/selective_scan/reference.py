"""SelectiveScan2d in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.kernels.identity import DIRECTIONS

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def selective_scan2d(
    x: Array,
    dt: Array,
    b: Array,
    c: Array,
    dt_weight: Array,
    dt_bias: Array,
    a: Array,
    skip: Array,
) -> Float64:
    """Scan planes row-major, column-major and both reversed, each with its own state.

    Args:
        x: [S, H, W, D].
        dt: [S, H, W, 4, R].
        b: [S, H, W, 4, N].
        c: [S, H, W, 4, N].
        dt_weight: [4, D, R].
        dt_bias: [4, D].
        a: [4, D, N], negative.
        skip: [4, D].

    Returns:
        [S, H, W, 4, D], each direction's output at the cell that it belongs to.
    """
    sequences, height, width, channels = x.shape
    y = np.empty((sequences, height * width, DIRECTIONS, channels))
    flat = x.astype(np.float64).reshape(sequences, -1, channels)
    low, inputs, outputs = (t.astype(np.float64).reshape(*y.shape[:3], -1) for t in (dt, b, c))
    by_row = np.arange(height * width)
    by_column = by_row.reshape(height, width).T.ravel()
    orders = (by_row, by_column, by_row[::-1], by_column[::-1])
    for direction, order in enumerate(orders):
        state = np.zeros((sequences, channels, a.shape[2]))
        for cell in order:
            raw = low[:, cell, direction] @ dt_weight[direction].T + dt_bias[direction]
            delta = np.logaddexp(0, raw)[:, :, None]
            new = delta * flat[:, cell, :, None] * inputs[:, cell, direction, None, :]
            state = np.exp(delta * a[direction]) * state + new
            seen = (state * outputs[:, cell, direction, None, :]).sum(-1)
            y[:, cell, direction] = seen + skip[direction] * flat[:, cell]
    return y.reshape(sequences, height, width, DIRECTIONS, channels)
