"""NormMlp written as its definition: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import NORM_EPS


def norm_mlp(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Add to each cell of a volume what an MLP makes of its norm.

    out = volume + weight2 @ gelu(weight1 @ layer_norm(volume) + bias1) + bias2, with the exact
    GELU. The products' operands are rounded to the volume's type; all else is float32 (float64
    for float64 inputs).

    Args:
        volume: [S, hq, wq, hs, ws, D], any floating type.
        norm_weight: [D], the volume's type.
        norm_bias: [D], the volume's type.
        weight1: [F, D], the volume's type.
        bias1: [F], the volume's type.
        weight2: [D, F], the volume's type.
        bias2: [D], the volume's type.

    Returns:
        [S, hq, wq, hs, ws, D] of the volume's type.
    """
    kind, channels = volume.dtype, volume.shape[-1]
    compute = torch.float64 if kind == torch.float64 else torch.float32
    scale, shift = norm_weight.to(compute), norm_bias.to(compute)
    normed = F.layer_norm(volume.to(compute), (channels,), scale, shift, NORM_EPS).to(kind)
    hidden = F.gelu(F.linear(normed.to(compute), weight1.to(compute), bias1.to(compute))).to(kind)
    added = F.linear(hidden.to(compute), weight2.to(compute), bias2.to(compute))
    return (volume.to(compute) + added).to(kind).contiguous()
