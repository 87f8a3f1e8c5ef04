"""ScanPrologue written as its definition: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import NORM_EPS
from uino_deploy.kernels.planes import to_planes


def scan_prologue(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> tuple[Tensor, Tensor]:
    """Normalise, project and convolve a volume over one plane, and project what its scan needs.

    v = in_weight @ layer_norm(volume); x = silu(conv3x3(v) + conv_bias), channel by channel, with
    zeros outside the plane; packed = projection @ x. The products' operands and the results are
    rounded to the volume's type; all else is float32 (float64 for float64 inputs).

    Args:
        volume: [S, hq, wq, hs, ws, D], any floating type.
        norm_weight: [D], the volume's type.
        norm_bias: [D], the volume's type.
        in_weight: [D, D], the volume's type.
        conv_weight: [D, 3, 3], the volume's type.
        conv_bias: [D], the volume's type.
        projection: [4, P, D], the volume's type: for each direction the rows of dt, B and C; rows
            that pad P to a multiple of 8 are zero.
        plane: 0 to convolve over the query's planes, 1 over the support's.

    Returns:
        x [S', H, W, D] and packed [S', H, W, 4, P] of the volume's type, in the layout of
        `to_planes`.
    """
    kind, channels = volume.dtype, volume.shape[-1]
    compute = torch.float64 if kind == torch.float64 else torch.float32
    scale, shift = norm_weight.to(compute), norm_bias.to(compute)
    normed = F.layer_norm(volume.to(compute), (channels,), scale, shift, NORM_EPS).to(kind)
    projected = F.linear(normed.to(compute), in_weight.to(compute))
    planes = to_planes(projected, plane).permute(0, 3, 1, 2)
    weight, bias = conv_weight[:, None].to(compute), conv_bias.to(compute)
    x = F.silu(F.conv2d(planes, weight, bias, padding=1, groups=channels))
    x = x.permute(0, 2, 3, 1).to(kind).contiguous()
    packed = F.linear(x.to(compute), projection.flatten(0, 1).to(compute))
    return x, packed.reshape(*x.shape[:3], *projection.shape[:2]).to(kind)
