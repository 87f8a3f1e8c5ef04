"""The torch operator `uino::scan_epilogue`: shape rule, dispatch and gradient."""

import torch
from torch import Tensor

from uino_deploy.kernels.dispatch import differentiable, runs_on_triton
from uino_deploy.kernels.epilogue import naive
from uino_deploy.kernels.planes import check_operands, check_plane, planes_shape


@torch.library.custom_op("uino::scan_epilogue", mutates_args=())
def operator(
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
    """End a scan; see `naive.scan_epilogue` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    before, ending = (y, volume, norm_weight, norm_bias), (out_norm_weight, out_norm_bias)
    operands = (*before, gate_weight, *ending, projection)
    check_plane(plane)
    channels = volume.shape[-1]
    check_operands(
        volume,
        {
            "y": (y, (*planes_shape(volume.shape, plane), channels)),
            "norm_weight": (norm_weight, (channels,)),
            "norm_bias": (norm_bias, (channels,)),
            "gate_weight": (gate_weight, (channels, channels)),
            "out_norm_weight": (out_norm_weight, (channels,)),
            "out_norm_bias": (out_norm_bias, (channels,)),
            "projection": (projection, (channels, channels)),
        },
    )
    if runs_on_triton(y):
        from uino_deploy.kernels.epilogue import triton_kernel

        with torch.cuda.device(y.device):
            return triton_kernel.scan_epilogue(*operands, plane)
    with torch.autocast(y.device.type, enabled=False):
        return naive.scan_epilogue(*operands, plane)


@operator.register_fake
def _(
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
    return volume.new_empty(volume.shape)


scan_epilogue = differentiable(operator, naive.scan_epilogue)
