"""NormMlp in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

import math

import numpy as np

from uino_deploy.kernels.numpy_parts import Array, Float64, layer_norm

_erf = np.vectorize(math.erf, otypes=[np.float64])


def norm_mlp(
    volume: Array,
    norm_weight: Array,
    norm_bias: Array,
    weight1: Array,
    bias1: Array,
    weight2: Array,
    bias2: Array,
) -> Float64:
    """Add to a volume what two layers make of its norm, with GELU between them.

    Args:
        volume: [S, hq, wq, hs, ws, D].
        norm_weight: [D].
        norm_bias: [D].
        weight1: [F, D].
        bias1: [F].
        weight2: [D, F].
        bias2: [D].

    Returns:
        [S, hq, wq, hs, ws, D].
    """
    hidden = layer_norm(volume, norm_weight, norm_bias) @ weight1.T + bias1
    active = 0.5 * hidden * (1 + _erf(hidden / math.sqrt(2)))
    out: Float64 = volume + active @ weight2.T + bias2
    return out
