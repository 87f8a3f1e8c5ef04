"""The error of a compiled kernel, executed on a small ragged shape, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from uino_deploy import ptx
from uino_deploy.benchmarks.ledger.traffic import NUMPY, Executable, arrays
from uino_deploy.errors import CheckFailed
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape, VolumeShape
from uino_deploy.kernels.compiler.variants import Shape, Variant, grid_of, scalars_of
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.epilogue import naive as epilogue
from uino_deploy.kernels.mlp import naive as mlp
from uino_deploy.kernels.prologue import naive as prologue
from uino_deploy.kernels.selective_scan import naive as selective_scan
from uino_deploy.tolerances import OPERATOR


def small_shape(variant: Variant) -> Shape:
    """Return a shape with several tiles, all ragged, for a variant.

    The correlation's two query tiles and several window tiles are partial in every dimension; the
    scan has two chunks or two groups, the other kernels two volumes and a part of a block.
    """
    n = variant.constants
    if variant.op not in ("correlation4d", "selective_scan2d"):
        width = n.get("P", n.get("F", 0))
        return VolumeShape(variant.op, 2, 3, 3, n["D"], width, n.get("PLANE", 0))
    if variant.op == "correlation4d":
        return CorrelationShape(1, 1, 2, 140, 80, 11, 13, n["POOL"])
    plane = (1, 15, 19) if n["PARALLEL"] else (5, 2, 5)
    return ScanShape(*plane, n["BLOCK_D"], n["N"], n["R"])


def full_shape(variant: Variant, shape: Shape) -> Shape:
    """Return a shape with sums as long as a model's shape has, and as little else as possible."""
    if isinstance(shape, CorrelationShape):
        return replace(shape, layers=1, n_query=140, height=11, width=13)
    if isinstance(shape, ScanShape):
        return replace(shape, sequences=1 if variant.constants["PARALLEL"] else 5)
    return small_shape(variant)


def relative_error(kernel: Executable, shape: Shape, capability: int) -> float:
    """Launch the whole grid on random operands; return the outputs' largest relative L2 error.

    Raises:
        PtxFault: the program does something undefined.
        UnsupportedPtx: the executor does not support its code.
        CheckFailed: it leaves a part of its output unwritten.
    """
    variant = kernel.variant
    tensors = operands(shape, variant.dtype)
    made = [ptx.poisoned(size, NUMPY[variant.dtype]) for size in arrays(shape)[1]]
    ptx.launch(
        kernel.program,
        grid=grid_of(variant, shape, capability),
        block=kernel.threads,
        shared=kernel.shared_bytes,
        arguments=[*map(bits, tensors), *scalars_of(shape), *made],
    )
    errors, exact = [], specified([t.double() for t in tensors], shape)
    for out, expected in zip(made, exact, strict=True):
        if not out.complete:
            raise CheckFailed(f"{variant.name} leaves a part of its output unwritten")
        got = torch.from_numpy(out.array)
        got = got.view(torch.bfloat16) if variant.dtype == "bfloat16" else got
        errors.append(((got.double() - expected).norm() / expected.norm()).item())
    return max(errors)


def tolerance(variant: Variant) -> float:
    """Return the largest relative L2 error of a correct kernel."""
    return OPERATOR[variant.dtype].relative_l2


def operands(shape: Shape, dtype: str) -> list[torch.Tensor]:
    """Draw the operator's inputs in the ABI's order; the scan's parameters are float32."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(*size, generator=generator) for size in arrays(shape)[0]]
    if not isinstance(shape, ScanShape):
        return [t.to(getattr(torch, dtype)) for t in drawn]
    *own, weight, bias, a, skip = drawn
    return [*(t.to(getattr(torch, dtype)) for t in own), weight, bias - 3, -4 * a.abs(), skip]


def bits(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return a tensor's memory as a numpy array, bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def specified(tensors: Sequence[torch.Tensor], shape: Shape) -> list[torch.Tensor]:
    """Return what the operator's specification makes of its inputs, which are in the ABI's order.

    Of float64, on inputs that were rounded before, these are the exact results.
    """
    given: list[Any] = list(tensors)
    if isinstance(shape, ScanShape):
        return [selective_scan.selective_scan2d(*given)]
    if isinstance(shape, CorrelationShape):
        given += [shape.height, shape.width, shape.pool]
        return [correlation.correlation4d(*given)]
    if shape.op == "norm_mlp":
        return [mlp.norm_mlp(*given)]
    given.append(shape.plane)
    if shape.op == "scan_prologue":
        return list(prologue.scan_prologue(*given))
    return [epilogue.scan_epilogue(*given)]
