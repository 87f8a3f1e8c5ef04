"""The kernel variants that the presets need: kernel, types, compile-time constants, launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uino_deploy.config import UinoConfig
from uino_deploy.kernels.compiler.shapes import (
    CorrelationShape,
    ScanShape,
    correlation_shape,
    scan_shapes,
)
from uino_deploy.kernels.correlation import plugin as correlation_plugin
from uino_deploy.kernels.correlation import triton_kernel as correlation
from uino_deploy.kernels.correlation import triton_kernel_backward as correlation_backward
from uino_deploy.kernels.plugins.operator import POINTER_ALIGNMENT, Parameter
from uino_deploy.kernels.selective_scan import plugin as scan_plugin
from uino_deploy.kernels.selective_scan import triton_kernel as selective_scan
from uino_deploy.kernels.selective_scan import triton_kernel_1d as selective_scan_1d
from uino_deploy.kernels.selective_scan import (
    triton_kernel_1d_backward as selective_scan_1d_backward,
)
from uino_deploy.kernels.selective_scan import triton_kernel_backward as selective_scan_backward
from uino_deploy.kernels.selective_scan.tiling import Tiling, tiling_for

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_KERNELS = {
    "correlation4d": correlation.correlation4d_kernel,
    "correlation4d_backward": correlation_backward.correlation4d_backward_kernel,
    "selective_scan2d": selective_scan.selective_scan2d_kernel,
    "selective_scan1d": selective_scan_1d.selective_scan1d_kernel,
    "selective_scan2d_backward": selective_scan_backward.selective_scan2d_backward_kernel,
    "selective_scan1d_backward": selective_scan_1d_backward.selective_scan1d_backward_kernel,
}
_OPERATORS = {o.kernel: o for o in (correlation_plugin.OPERATOR, scan_plugin.OPERATOR)}
# Kernels that only PyTorch launches: their pointers to float32 whatever the operator's type is.
_FLOAT32 = {
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
        if self.op in _OPERATORS:
            return _OPERATORS[self.op].parameters(self.dtype)
        wide, names = _FLOAT32[self.op], self.kernel.arg_names
        return [
            Parameter(name, "float32" if name in wide else self.dtype, True, POINTER_ALIGNMENT)
            if name.endswith("_ptr")
            else Parameter(name, "int32", False, 1)
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
    tiling = scan_tiling(shape)
    config = tiling.config(shape.states, shape.rank)
    constants = tiling.constants(shape.states, shape.rank)
    return Variant("selective_scan2d", dtype, config, constants, tiling.warps, 2)


def scan_backward_variant(shape: ScanShape, dtype: str) -> Variant:
    """Return the variant of the plane scan's backward kernel for a shape, all channels a block."""
    tiling = selective_scan_backward.backward_tiling(
        shape.sequences, shape.length, shape.channels, shape.states
    )
    config = tiling.config(shape.states, shape.rank)
    constants = tiling.constants(shape.states, shape.rank)
    return Variant("selective_scan2d_backward", dtype, config, constants, tiling.warps, 2)


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
    rule = selective_scan_1d_backward.backward_tiling if backward else selective_scan_1d.tiling_of
    tiling = rule(length, channels, states)
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
        variants.update({variant.name: variant for variant in wanted})
    return list(variants.values())


def model_variants(configs: Sequence[UinoConfig], capability: int) -> list[Variant]:
    """Return the variants that models need on an architecture, in every type it supports."""
    dtypes = [t for t in DTYPES if t != "bfloat16" or capability >= 80]
    variants = {}
    for config in configs:
        variants.update({v.name: v for v in variants_of(config, capability, dtypes)})
    return [variants[name] for name in sorted(variants)]


def grid_of(variant: Variant, shape: CorrelationShape | ScanShape, capability: int) -> Any:
    """Return the launch grid of a variant for a shape, as a tuple of three ints."""
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


def scalars_of(shape: CorrelationShape | ScanShape) -> list[int]:
    """Return the int32 arguments of a launch, in the ABI's order."""
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
