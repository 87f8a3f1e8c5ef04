"""Correlation4d in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

import numpy as np

from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.numpy_parts import Array, Float64


def correlation4d(
    query: Array, support: Array, weight: Array, *, height: int, width: int, pool: int
) -> Float64:
    """Return relu(cosine) of every query and support token, weighted and averaged over windows.

    Args:
        query: [B, L, Nq, D].
        support: [B or 1, K, L, Ns, D].
        weight: [B or 1, K, Ns].
        height: rows of the support grid; height * width = Ns.
        width: columns of the support grid.
        pool: side of the averaging window; partial windows average the cells they have.

    Returns:
        [B, K, L, Nq, h' * w'], h' = ceil(height / pool), w' = ceil(width / pool).
    """
    q, s = _unit(query.astype(np.float64)), _unit(support.astype(np.float64))
    cosine = q[:, None] @ s.swapaxes(-1, -2)  # [B, K, L, Nq, Ns]
    volume = np.maximum(cosine, 0) * weight.astype(np.float64)[:, :, None, None, :]
    planes = volume.reshape(*volume.shape[:-1], height, width)
    rows, columns = np.arange(0, height, pool), np.arange(0, width, pool)
    sums = np.add.reduceat(np.add.reduceat(planes, rows, axis=-2), columns, axis=-1)
    cells = np.minimum(pool, height - rows)[:, None] * np.minimum(pool, width - columns)
    pooled: Float64 = (sums / cells).reshape(*volume.shape[:-1], -1)
    return pooled


def _unit(tokens: Float64) -> Float64:
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    unit: Float64 = tokens / np.maximum(norms, EPS)
    return unit
