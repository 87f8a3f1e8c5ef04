"""The torch operator `uino::norm_mlp`: shape rule, dispatch and gradient."""

import torch
from torch import Tensor

from uino_deploy.kernels.dispatch import differentiable, runs_on_triton
from uino_deploy.kernels.mlp import naive
from uino_deploy.kernels.planes import check_operands


@torch.library.custom_op("uino::norm_mlp", mutates_args=())
def operator(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Add an MLP's result; see `naive.norm_mlp` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    operands = (volume, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    channels, hidden = volume.shape[-1], weight1.shape[0]
    check_operands(
        volume,
        {
            "norm_weight": (norm_weight, (channels,)),
            "norm_bias": (norm_bias, (channels,)),
            "weight1": (weight1, (hidden, channels)),
            "bias1": (bias1, (hidden,)),
            "weight2": (weight2, (channels, hidden)),
            "bias2": (bias2, (channels,)),
        },
    )
    if runs_on_triton(volume):
        from uino_deploy.kernels.mlp import triton_kernel

        with torch.cuda.device(volume.device):
            return triton_kernel.norm_mlp(*operands)
    with torch.autocast(volume.device.type, enabled=False):
        return naive.norm_mlp(*operands)


@operator.register_fake
def _(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    return volume.new_empty(volume.shape)


norm_mlp = differentiable(operator, naive.norm_mlp)
