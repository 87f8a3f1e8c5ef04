"""ScanEpilogue in numpy and float64: the reference on a device without torch.

It repeats the mathematics of `naive.py`; where torch is installed, the tests compare the two.
"""

from __future__ import annotations

from uino_deploy.kernels.numpy_parts import Array, Float64, layer_norm, silu


def scan_epilogue(
    y: Array,
    volume: Array,
    norm_weight: Array,
    norm_bias: Array,
    gate_weight: Array,
    out_norm_weight: Array,
    out_norm_bias: Array,
    projection: Array,
    plane: int,
) -> Float64:
    """Normalise and gate what a scan gave, project it, and add it to the volume.

    Args:
        y: [S', H, W, D]; S' is all of the volume but the plane.
        volume: [S, hq, wq, hs, ws, D].
        norm_weight: [D], of the volume's norm, which the gate is made from.
        norm_bias: [D].
        gate_weight: [D, D].
        out_norm_weight: [D], of the norm of y.
        out_norm_bias: [D].
        projection: [D, D].
        plane: 0 if y holds the query's planes, 1 for the support's.

    Returns:
        [S, hq, wq, hs, ws, D].
    """
    scanned = layer_norm(y, out_norm_weight, out_norm_bias)
    if plane == 0:
        shots, *query = volume.shape[:3]
        by_plane = scanned.reshape(shots, *volume.shape[3:5], *query, -1)
        scanned = by_plane.transpose(0, 3, 4, 1, 2, 5)
    gate = silu(layer_norm(volume, norm_weight, norm_bias) @ gate_weight.T)
    out: Float64 = volume + (scanned.reshape(volume.shape) * gate) @ projection.T
    return out
