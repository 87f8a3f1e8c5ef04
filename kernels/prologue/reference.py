"""ScanPrologue in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

import numpy as np

from uino_deploy.kernels.numpy_parts import Array, Float64, layer_norm, silu


def scan_prologue(
    volume: Array,
    norm_weight: Array,
    norm_bias: Array,
    in_weight: Array,
    conv_weight: Array,
    conv_bias: Array,
    projection: Array,
    plane: int,
) -> tuple[Float64, Float64]:
    """Normalise and project a volume, convolve one plane of it, and project what a scan needs.

    Args:
        volume: [S, hq, wq, hs, ws, D].
        norm_weight: [D].
        norm_bias: [D].
        in_weight: [D, D].
        conv_weight: [D, 3, 3].
        conv_bias: [D].
        projection: [4, P, D].
        plane: 0 to convolve over the query's planes, 1 over the support's.

    Returns:
        x [S', H, W, D] and packed [S', H, W, 4, P]; S' is all else but the plane.
    """
    inner = layer_norm(volume, norm_weight, norm_bias) @ in_weight.T
    if plane == 0:
        inner = inner.transpose(0, 3, 4, 1, 2, 5)
    planes = inner.reshape(-1, *inner.shape[3:])
    height, width = planes.shape[1:3]
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    convolved = conv_bias + sum(
        conv_weight[:, row, column] * padded[:, row : row + height, column : column + width]
        for row, column in np.ndindex(3, 3)
    )
    x = silu(convolved)
    return x, np.einsum("gpd,shwd->shwgp", projection, x)
