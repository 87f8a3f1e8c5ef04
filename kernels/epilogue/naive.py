"""ScanEpilogue written as its definition: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import NORM_EPS
from uino_deploy.kernels.planes import from_planes


def scan_epilogue(
    y: Tensor,
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gate_weight: Tensor,
    out_norm_weight: Tensor,
    out_norm_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> Tensor:
    """Normalise, gate and project what a scan gave, and add it to the volume.

    z = gate_weight @ layer_norm(volume), of the same cell;
    out = volume + projection @ (layer_norm(y) * silu(z)). The products' operands are rounded to
    the volume's type; all else is float32 (float64 for float64 inputs).

    Args:
        y: [S', H, W, D], any floating type, in the layout of `to_planes`.
        volume: [S, hq, wq, hs, ws, D], y's type, as the prologue took it.
        norm_weight: [D], y's type, as the prologue took it.
        norm_bias: [D], y's type, as the prologue took it.
        gate_weight: [D, D], y's type.
        out_norm_weight: [D], y's type, of the LayerNorm over y.
        out_norm_bias: [D], y's type.
        projection: [D, D], y's type.
        plane: 0 if y holds the query's planes, 1 for the support's.

    Returns:
        [S, hq, wq, hs, ws, D] of y's type.
    """
    kind, channels = volume.dtype, volume.shape[-1]
    compute = torch.float64 if kind == torch.float64 else torch.float32

    def norm(tensor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        scale, shift = weight.to(compute), bias.to(compute)
        return F.layer_norm(tensor.to(compute), (channels,), scale, shift, NORM_EPS)

    normed = norm(volume, norm_weight, norm_bias).to(kind).to(compute)
    gate = F.silu(F.linear(normed, gate_weight.to(compute)))
    scanned = from_planes(norm(y, out_norm_weight, out_norm_bias), plane, volume.shape[:5])
    gated = (scanned * gate).to(kind).to(compute)
    return (volume.to(compute) + F.linear(gated, projection.to(compute))).to(kind).contiguous()
