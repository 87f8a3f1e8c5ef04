"""ScanPrologue written as its definition: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.planes import to_planes


def scan_prologue(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, projection: Tensor, plane: int
) -> tuple[Tensor, Tensor]:
    """Convolve one plane of a volume channel by channel, and project what a scan needs.

    x = silu(conv3x3(xz[..., :D]) + conv_bias), zeros outside the plane; packed = projection @ x of
    the rounded x. Arithmetic is float32 (float64 for float64 inputs).

    Args:
        xz: [S, hq, wq, hs, ws, 2D], any floating type: D channels to scan, then D of the gate.
        conv_weight: [D, 3, 3], xz's type.
        conv_bias: [D], xz's type.
        projection: [4, P, D], xz's type: for each direction the rows of dt, B and C; rows that pad
            P to a multiple of 8 are zero.
        plane: 0 to convolve over the query's planes, 1 over the support's.

    Returns:
        x [S', H, W, D] and packed [S', H, W, 4, P] of xz's type, in the layout of `to_planes`.
    """
    compute = torch.float64 if xz.dtype == torch.float64 else torch.float32
    channels, width = projection.shape[2], projection.shape[1]
    planes = to_planes(xz[..., :channels].to(compute), plane).permute(0, 3, 1, 2)
    weight, bias = conv_weight[:, None].to(compute), conv_bias.to(compute)
    x = F.silu(F.conv2d(planes, weight, bias, padding=1, groups=channels))
    x = x.permute(0, 2, 3, 1).to(xz.dtype).contiguous()
    packed = F.linear(x.to(compute), projection.flatten(0, 1).to(compute))
    return x, packed.unflatten(-1, (-1, width)).to(xz.dtype)
