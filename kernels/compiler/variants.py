"""The kernel variants that the presets need: kernel, types, compile-time constants, launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uino_deploy.config import UinoConfig
from uino_deploy.kernels import triton_cells
from uino_deploy.kernels.compiler.shapes import (
    CorrelationShape,
    ScanShape,
    VolumeShape,
    correlation_shape,
    packed_width,
    scan_shapes,
    volume_shapes,
)
from uino_deploy.kernels.compiler.targets import DTYPES, dtypes_of
from uino_deploy.kernels.correlation import triton_kernel as correlation
from uino_deploy.kernels.correlation import triton_kernel_backward as correlation_backward
from uino_deploy.kernels.epilogue import triton_kernel as epilogue
from uino_deploy.kernels.mlp import triton_kernel as mlp
from uino_deploy.kernels.plugins.operator import POINTER_ALIGNMENT, Parameter
from uino_deploy.kernels.plugins.volumes import PLANES
from uino_deploy.kernels.prologue import triton_kernel as prologue
from uino_deploy.kernels.selective_scan import triton_kernel as selective_scan
from uino_deploy.kernels.selective_scan import triton_kernel_1d as selective_scan_1d
from uino_deploy.kernels.selective_scan import (
    triton_kernel_1d_backward as selective_scan_1d_backward,
)
from uino_deploy.kernels.selective_scan import triton_kernel_backward as selective_scan_backward
from uino_deploy.kernels.selective_scan.tiling import Tiling, segments, tiling_for

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_KERNELS = {
    "correlation4d": correlation.correlation4d_kernel,
    "correlation4d_backward": correlation_backward.correlation4d_backward_kernel,
    "scan_prologue": prologue.scan_prologue_kernel,
    "selective_scan2d": selective_scan.selective_scan2d_kernel,
    "scan_epilogue": epilogue.scan_epilogue_kernel,
    "norm_mlp": mlp.norm_mlp_kernel,
    "selective_scan1d": selective_scan_1d.selective_scan1d_kernel,
    "selective_scan2d_backward": selective_scan_backward.selective_scan2d_backward_kernel,
    "selective_scan1d_backward": selective_scan_1d_backward.selective_scan1d_backward_kernel,
}
# Pointers to float32 whatever the operator's type is.
_FLOAT32: dict[str, set[str]] = {
    "selective_scan2d": {"dt_weight_ptr", "dt_bias_ptr", "a_ptr", "skip_ptr"},
    "correlation4d_backward": {"of_weight_ptr", "along_queries_ptr", "along_supports_ptr"},
    "selective_scan1d": {"a_ptr", "skip_ptr", "bias_ptr", "last_ptr"},
    "selective_scan1d_backward": {
        *("a_ptr", "skip_ptr", "bias_ptr", "of_last_ptr", "states_ptr"),
        *("of_b_ptr", "of_c_ptr", "of_parameters_ptr"),
    },
    "selective_scan2d_backward": {
        *("dt_weight_ptr", "dt_bias_ptr", "a_ptr", "skip_ptr"),
        *("states_ptr", "of_parameters_ptr"),
    },
}
# What shipped code relies on: only PyTorch launches the other kernels.
_MULTIPLES = {("correlation4d", "channels"): 16, ("selective_scan2d", "channels"): 16}


@dataclass(frozen=True)
class Variant:
    """One compilation: an operator, an element type, and every compile-time constant."""

    op: str
    dtype: str
    config: str
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """File stem, without the architecture."""
        return f"{self.op}-{self.config}-{DTYPES[self.dtype]}"

    @property
    def kernel(self) -> Any:
        """The Triton function."""
        return _KERNELS[self.op]

    @property
    def parameters(self) -> list[Parameter]:
        """Parameters in the kernel's order; for a plugin inputs, int32 scalars, outputs."""
        wide, names = _FLOAT32.get(self.op, set()), self.kernel.arg_names
        return [
            Parameter(name, "float32" if name in wide else self.dtype, True, POINTER_ALIGNMENT)
            if name.endswith("_ptr")
            else Parameter(name, "int32", False, _MULTIPLES.get((self.op, name), 1))
            for name in names
            if name not in self.constants
        ]


def correlation_variant(shape: CorrelationShape, dtype: str, capability: int) -> Variant:
    """Return the correlation's variant for a shape."""
    tile = correlation.tile_for(ELEMENT_BYTES[dtype], capability)
    constants = tile.constants(shape.pool)
    return Variant("correlation4d", dtype, f"p{shape.pool}", constants, tile.warps, tile.stages)


def correlation_backward_variant(pool: int, dtype: str) -> Variant:
    """Return the variant of the correlation's backward kernel."""
    constants = correlation_backward.constants(pool, ELEMENT_BYTES[dtype])
    tile = correlation_backward.WARPS, correlation_backward.STAGES
    return Variant("correlation4d_backward", dtype, f"p{pool}", constants, *tile)


def scan_variant(shape: ScanShape, dtype: str) -> Variant:
    """Return the scan's variant for a shape."""
    tiling = scan_tiling(shape).of_type(ELEMENT_BYTES[dtype])
    return _scan_variant("selective_scan2d", tiling, shape, dtype)


def scan_backward_variant(shape: ScanShape, dtype: str) -> Variant:
    """Return the variant of the plane scan's backward kernel for a shape, all channels a block."""
    tiling = selective_scan_backward.backward_tiling(
        shape.sequences, shape.length, shape.channels, shape.states
    )
    return _scan_variant("selective_scan2d_backward", tiling, shape, dtype)


def _scan_variant(op: str, tiling: Tiling, shape: ScanShape, dtype: str) -> Variant:
    sizes = (shape.states, shape.rank, packed_width(shape.rank, shape.states))
    return Variant(op, dtype, tiling.config(*sizes), tiling.constants(*sizes), tiling.warps, 2)


def volume_variant(shape: VolumeShape, dtype: str, capability: int) -> Variant:
    """Return the variant of the operator that a shape is of."""
    channels, gpu = shape.channels, (ELEMENT_BYTES[dtype], capability)
    plane = PLANES[shape.plane]
    if shape.op == "scan_prologue":
        config = f"{plane}-d{channels}p{shape.width}"
        constants = prologue.constants(shape.plane, channels, shape.width, *gpu)
    elif shape.op == "scan_epilogue":
        config = f"{plane}-d{channels}"
        constants = epilogue.constants(shape.plane, channels, *gpu)
    else:
        config = f"d{channels}f{shape.width}"
        constants = mlp.constants(channels, shape.width, *gpu)
    return Variant(shape.op, dtype, config, constants, triton_cells.WARPS, 1)


def scan1d_variant(
    dtype: str,
    channels: int,
    states: int,
    length: int,
    *,
    varying: str = "BC",
    options: Sequence[str] = (),
    backward: bool = False,
) -> Variant:
    """Return the variant of mamba-ssm's scan, or of its gradient, for a group of channels.

    Args:
        dtype: type of everything but A, D and the bias.
        channels: channels of one group.
        states: N.
        length: steps of the scan.
        varying: which of B and C change with time.
        options: any of "skip", "gate", "bias" and "softplus".
        backward: the gradient's kernel.
    """
    rule = selective_scan_1d_backward.backward_tiling if backward else segments
    tiling = rule(channels, states)
    constants = selective_scan_1d.constants(tiling, states, varying, options)
    config = "-".join([f"d{tiling.block_d}n{states}s{tiling.steps}", varying or "none", *options])
    op = "selective_scan1d_backward" if backward else "selective_scan1d"
    return Variant(op, dtype, config, constants, tiling.warps, 2)


def scan_tiling(shape: ScanShape) -> Tiling:
    """Return the tiling that the launcher takes for a shape."""
    return tiling_for(shape.sequences, shape.length, shape.channels, shape.states)


def variants_of(config: UinoConfig, capability: int, dtypes: list[str]) -> list[Variant]:
    """Return the variants one model needs at batch 1 and one shot, without repeats."""
    variants = {}
    for dtype in dtypes:
        wanted = [correlation_variant(correlation_shape(config), dtype, capability)]
        wanted += [scan_variant(shape, dtype) for shape in scan_shapes(config)]
        around = volume_shapes(config)
        wanted += [volume_variant(shape, dtype, capability) for shape in around]
        variants.update({variant.name: variant for variant in wanted})
    return list(variants.values())


def model_variants(configs: Sequence[UinoConfig], capability: int) -> list[Variant]:
    """Return the variants that models need on an architecture, in every type it supports."""
    dtypes = dtypes_of(capability)
    variants = {}
    for config in configs:
        variants.update({v.name: v for v in variants_of(config, capability, dtypes)})
    return [variants[name] for name in sorted(variants)]


Shape = CorrelationShape | ScanShape | VolumeShape


def grid_of(variant: Variant, shape: Shape, capability: int) -> tuple[int, int, int]:
    """Return the launch grid of a variant for a shape."""
    if isinstance(shape, VolumeShape):
        return triton_cells.blocks(shape.cells, variant.constants), 1, 1
    if isinstance(shape, ScanShape):
        return scan_tiling(shape).grid(shape.sequences, shape.channels)
    tile = correlation.tile_for(ELEMENT_BYTES[variant.dtype], capability)
    return tile.grid(
        shape.batch,
        shape.shots,
        shape.layers,
        shape.n_query,
        shape.height,
        shape.width,
        shape.pool,
    )


def scalars_of(shape: Shape) -> list[int]:
    """Return the int32 arguments of a launch, in the ABI's order."""
    if isinstance(shape, VolumeShape):
        sides = (shape.query, shape.query, shape.support, shape.support)
        return [shape.cells] if shape.op == "norm_mlp" else [shape.shots, *sides]
    if isinstance(shape, ScanShape):
        return [shape.sequences, shape.height, shape.width, shape.channels]
    return [
        shape.layers,
        shape.shots,
        shape.n_query,
        shape.channels,
        shape.height,
        shape.width,
        shape.batch,
        shape.batch,
    ]
