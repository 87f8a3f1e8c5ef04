"""The torch operator `uino::scan_prologue`: shape rule, dispatch and gradient."""

import torch
from torch import Tensor

from uino_deploy.kernels.dispatch import differentiable, runs_on_triton
from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.planes import check_operands, check_plane, planes_shape
from uino_deploy.kernels.prologue import naive


@torch.library.custom_op("uino::scan_prologue", mutates_args=())
def operator(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> tuple[Tensor, Tensor]:
    """Prepare a scan; see `naive.scan_prologue` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    operands = (volume, norm_weight, norm_bias, in_weight, conv_weight, conv_bias, projection)
    check_plane(plane)
    channels = volume.shape[-1]
    check_operands(
        volume,
        {
            "norm_weight": (norm_weight, (channels,)),
            "norm_bias": (norm_bias, (channels,)),
            "in_weight": (in_weight, (channels, channels)),
            "conv_weight": (conv_weight, (channels, 3, 3)),
            "conv_bias": (conv_bias, (channels,)),
            "projection": (projection, (DIRECTIONS, projection.shape[1], channels)),
        },
    )
    if runs_on_triton(volume):
        from uino_deploy.kernels.prologue import triton_kernel

        with torch.cuda.device(volume.device):
            return triton_kernel.scan_prologue(*operands, plane)
    with torch.autocast(volume.device.type, enabled=False):
        return naive.scan_prologue(*operands, plane)


@operator.register_fake
def _(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> tuple[Tensor, Tensor]:
    planes = planes_shape(volume.shape, plane)
    x = volume.new_empty(*planes, volume.shape[-1])
    return x, volume.new_empty(*planes, *projection.shape[:2])


scan_prologue = differentiable(operator, naive.scan_prologue)
