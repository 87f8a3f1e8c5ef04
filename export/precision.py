"""Precision as a property of the exported module, so that the ONNX graph carries it.

TensorRT 11 builds strongly typed networks only: a tensor's type is the one in the file.
LayerNormalization stays one node (its statistics are float32 by `stash_type`). The operators
compute in float32 inside: correlation norms, what surrounds a scan, the scan's state; the scan's
parameters are float32 too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from uino_deploy.bundle import Precision
from uino_deploy.errors import InputError
from uino_deploy.model.hypercorrelation import SelectiveScanBlock
from uino_deploy.pipeline import PIECES

PRECISIONS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,  # exported in float32 or float16 first, then quantised
    "fp8": torch.float32,
}
EIGHT_BIT: tuple[Precision, ...] = ("int8", "fp8")
# In the other pieces, linear layers take too little time for 8 bits to be worth their error.
QUANTISED = ("encoder",)
# ONNX quantises float16, and to fp8, from this opset on.
_QUANTISED_HALF_OPSET = 19
# ONNX gives Conv and ConvTranspose a bfloat16 type from opset 22 on.
_BFLOAT16_CONVOLUTION_OPSET = 22


def parse_precision(values: Sequence[str]) -> dict[str, Precision]:
    """Read `--precision` options: `fp16` for every piece, `encoder=fp32` for one.

    A later option wins over an earlier one for the same piece, and one that names a piece wins
    over one that does not.

    Raises:
        InputError: a precision or piece is unknown.
    """
    default: Precision = "fp32"
    named: dict[str, Precision] = {}
    for value in values:
        piece, _, precision = value.rpartition("=")
        if precision not in PRECISIONS:
            raise InputError(
                f"--precision {value}: unknown precision {precision!r}",
                f"choose from {', '.join(PRECISIONS)}",
            )
        if precision in EIGHT_BIT and piece not in QUANTISED:
            raise InputError(
                f"--precision {value}: {precision} is for the {' and the '.join(QUANTISED)} only",
                f"for example --precision fp16 --precision encoder={precision}",
            )
        if not piece and "=" not in value:
            default = precision
        elif piece in PIECES:
            named[piece] = precision
        else:
            raise InputError(
                f"--precision {value}: unknown piece {piece!r}", f"choose from {', '.join(PIECES)}"
            )
    return {piece: named.get(piece, default) for piece in PIECES}


def rest_of(precision: Mapping[str, Precision]) -> Precision:
    """Return what a quantised piece computes everything else in.

    That is fp16 if all other pieces are fp16, and fp32 otherwise: ONNX Runtime quantises no
    bfloat16 on a CPU, and OpenVINO lowers float32 there by itself.
    """
    others = {kind for kind in precision.values() if kind not in EIGHT_BIT}
    return "fp16" if others == {"fp16"} else "fp32"


def least_opset(precision: Mapping[str, Precision]) -> int:
    """Return the first opset that can express these precisions; 1 if every one can."""
    kinds = set(precision.values())
    half = not kinds.isdisjoint(EIGHT_BIT) and rest_of(precision) == "fp16"
    return _QUANTISED_HALF_OPSET if half or "fp8" in kinds else 1


def edge_type(precision: Precision) -> torch.dtype:
    """Return the type of a piece's outputs: float16 or float32, never bfloat16."""
    return torch.float16 if precision == "fp16" else torch.float32


def in_precision(module: nn.Module, precision: Precision, opset: int) -> nn.Module:
    """Return a copy of a module with its weights in `precision`.

    Parameters that a module lists in `float32_parameters` keep float32.
    """
    module = copy.deepcopy(module)
    dtype = PRECISIONS[precision]
    if precision == "bf16" and opset < _BFLOAT16_CONVOLUTION_OPSET:
        _wrap_convolutions(module)
    islands = {c.convolution for c in module.modules() if isinstance(c, Float32Convolution)}
    for child in set(module.modules()) - islands:
        kept: Sequence[str] = getattr(child, "float32_parameters", ())
        for name, tensor in _own_tensors(child).items():
            if name not in kept and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return module


class Float32Convolution(nn.Module):
    """A convolution computed in float32 between casts, for opsets without a bfloat16 one."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, planes: Tensor) -> Tensor:
        """[B, C, H, W] of any type -> the same type."""
        return self.convolution(planes.float()).to(planes.dtype)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters(recurse=False))
    return {**parameters, **dict(module.named_buffers(recurse=False))}


def _wrap_convolutions(module: nn.Module) -> None:
    if isinstance(module, SelectiveScanBlock):  # its convolution's weights go to an operator
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            setattr(module, name, Float32Convolution(child))
        else:
            _wrap_convolutions(child)
