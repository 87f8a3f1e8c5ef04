"""ScanEpilogue written as its definition: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import NORM_EPS
from uino_deploy.kernels.planes import from_planes


def scan_epilogue(
    y: Tensor,
    xz: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    residual: Tensor,
    plane: int,
) -> Tensor:
    """Normalise and gate what a scan gave, project it, and add it to the volume.

    out = residual + projection @ (layer_norm(y) * silu(z)), z = xz[..., D:] of the same cell. The
    product's operands are rounded to y's type; all else is float32 (float64 for float64 inputs).

    Args:
        y: [S', H, W, D], any floating type, in the layout of `to_planes`.
        xz: [S, hq, wq, hs, ws, 2D], y's type; the second D channels are the gate.
        norm_weight: [D], y's type.
        norm_bias: [D], y's type.
        projection: [D, D], y's type.
        residual: [S, hq, wq, hs, ws, D], y's type.
        plane: 0 if y holds the query's planes, 1 for the support's.

    Returns:
        [S, hq, wq, hs, ws, D] of y's type.
    """
    compute = torch.float64 if y.dtype == torch.float64 else torch.float32
    channels = y.shape[-1]
    scale, shift = norm_weight.to(compute), norm_bias.to(compute)
    normed = F.layer_norm(y.to(compute), (channels,), scale, shift, NORM_EPS)
    gate = F.silu(xz[..., channels:].to(compute))
    gated = (from_planes(normed, plane, tuple(xz.shape[:5])) * gate).to(y.dtype)
    added = F.linear(gated.to(compute), projection.to(compute))
    return (residual.to(compute) + added).to(y.dtype).contiguous()
