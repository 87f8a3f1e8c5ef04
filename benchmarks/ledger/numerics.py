"""The error of a compiled kernel, executed on a small ragged shape, against float64."""

from __future__ import annotations

import numpy as np
import torch

from uino_deploy import ptx
from uino_deploy.benchmarks.ledger.traffic import NUMPY, Executable, Shape, array_shapes
from uino_deploy.errors import CheckFailed
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape
from uino_deploy.kernels.compiler.variants import Variant, grid_of, scalars_of
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.selective_scan import naive as selective_scan
from uino_deploy.tolerances import OPERATOR


def small_shape(variant: Variant) -> Shape:
    """Return a shape with several tiles, all ragged, for a variant.

    The correlation's two query tiles and several window tiles are partial in every dimension; the
    scan has two chunks or two groups.
    """
    n = variant.constants
    if variant.op == "correlation4d":
        return CorrelationShape(1, 1, 2, 140, 80, 11, 13, n["POOL"])
    plane = (1, 9, 11) if n["PARALLEL"] else (17, 2, 5)
    return ScanShape(*plane, n["BLOCK_D"], n["N"], n["R"])


def relative_error(kernel: Executable, shape: Shape, capability: int) -> float:
    """Launch the whole grid on random operands; return the output's relative L2 error.

    Raises:
        PtxFault: the program does something undefined.
        UnsupportedPtx: the executor does not support its code.
        CheckFailed: it leaves a part of its output unwritten.
    """
    variant = kernel.variant
    tensors = operands(shape, variant.dtype)
    out = ptx.poisoned(array_shapes(shape)[-1], NUMPY[variant.dtype])
    ptx.launch(
        kernel.program,
        grid=grid_of(variant, shape, capability),
        block=kernel.threads,
        shared=kernel.shared_bytes,
        arguments=[*map(bits, tensors), *scalars_of(shape), out],
    )
    if not out.complete:
        raise CheckFailed(f"{variant.name} leaves a part of its output unwritten")
    got = torch.from_numpy(out.array)
    got = got.view(torch.bfloat16) if variant.dtype == "bfloat16" else got
    expected = reference(tensors, shape)
    return ((got.double() - expected).norm() / expected.norm()).item()


def tolerance(variant: Variant) -> float:
    """Return the largest relative L2 error of a correct kernel."""
    return OPERATOR[variant.dtype].relative_l2


def operands(shape: Shape, dtype: str) -> list[torch.Tensor]:
    """Draw the operator's inputs in the ABI's order; the scan's parameters are float32."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(*size, generator=generator) for size in array_shapes(shape)[:-1]]
    if isinstance(shape, CorrelationShape):
        return [t.to(getattr(torch, dtype)) for t in drawn]
    *arrays, weight, bias, a, skip = drawn
    return [*(t.to(getattr(torch, dtype)) for t in arrays), weight, bias - 3, -4 * a.abs(), skip]


def bits(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return a tensor's memory as a numpy array, bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def reference(tensors: list[torch.Tensor], shape: Shape) -> torch.Tensor:
    """Return the specification's result in float64 on the same, already rounded inputs."""
    exact = [t.double() for t in tensors]
    if isinstance(shape, ScanShape):
        return selective_scan.selective_scan2d(*exact)
    query, support, weight = exact
    return correlation.correlation4d(query, support, weight, shape.height, shape.width, shape.pool)
