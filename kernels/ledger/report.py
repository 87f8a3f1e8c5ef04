"""Assembles the ledger's records: one for each kernel, architecture, type and shape of a preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from uino_deploy.config import UinoConfig
from uino_deploy.kernels import ptx
from uino_deploy.kernels.compiler.build import Compiled, compile_target
from uino_deploy.kernels.compiler.shapes import (
    CorrelationShape,
    ScanShape,
    correlation_shape,
    scan_shapes,
)
from uino_deploy.kernels.compiler.targets import Target, target
from uino_deploy.kernels.compiler.variants import (
    ELEMENT_BYTES,
    Variant,
    correlation_variant,
    grid_of,
    scan_tiling,
    scan_variant,
)
from uino_deploy.kernels.ledger import traffic, unfused
from uino_deploy.kernels.ledger.boards import BOARDS, floor_us, occupancy
from uino_deploy.kernels.ledger.disassembly import instruction_mix

# Whose count stands in where an architecture's own code is beyond the executor.
STAND_IN = "sm_80"

Shape = CorrelationShape | ScanShape


class Bench:
    """Compiles each target once and executes each kernel and shape once."""

    def __init__(self, presets: list[str], cuda: str, progress: Callable[[str], None]) -> None:
        self._presets, self._cuda, self._progress = presets, cuda, progress
        self._kernels: dict[str, dict[str, Compiled]] = {}
        self._counts: dict[tuple[str, str, Shape], traffic.Traffic | None] = {}

    def target(self, arch: str) -> Target:
        """Return the target of an architecture under this ledger's CUDA release."""
        return target(arch, self._cuda)

    def kernel(self, arch: str, variant: Variant) -> Compiled:
        """Return a compiled variant."""
        if arch not in self._kernels:
            self._progress(f"{arch}: compiling")
            compiled = compile_target(self.target(arch), self._presets)
            self._kernels[arch] = {k.name.removesuffix(f"-{arch}"): k for k in compiled}
        return self._kernels[arch][variant.name]

    def count(self, arch: str, variant: Variant, shape: Shape) -> traffic.Traffic | None:
        """Return a launch's traffic; None where the executor does not know the code."""
        key = (arch, variant.name, shape)
        if key not in self._counts:
            self._progress(f"{arch}: executing {variant.name} for {shape}")
            self._counts[key] = self._execute(arch, variant, shape)
        return self._counts[key]

    def _execute(self, arch: str, variant: Variant, shape: Shape) -> traffic.Traffic | None:
        compiled = self.kernel(arch, variant)
        try:
            program = ptx.parse(compiled.ptx)
            kernel = traffic.Executable(
                variant, program, variant.warps * 32, compiled.record["shared_bytes"]
            )
            return traffic.count(kernel, shape, self.target(arch).capability)
        except ptx.UnsupportedPtx:
            return None


def report(
    presets: list[str],
    archs: list[str],
    dtypes: list[str],
    cuda: str = "13.0",
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Compile, disassemble and execute; return the records.

    Raises:
        BuildError: a kernel does not compile.
        InputError: an unknown preset, architecture or CUDA release.
    """
    bench = Bench(presets, cuda, progress)
    records = []
    for arch in archs:
        capability = bench.target(arch).capability
        for preset in presets:
            for shape in preset_shapes(preset):
                for dtype in dtypes:
                    if dtype != "bfloat16" or capability >= 80:
                        records.append(record(bench, preset, arch, dtype, shape))
    return records


def preset_shapes(preset: str) -> list[Shape]:
    """Return the operators' shapes in a preset at batch 1 and one shot."""
    config = UinoConfig.from_preset(preset)
    return [correlation_shape(config), *scan_shapes(config)]


def variant_for(shape: Shape, dtype: str, capability: int) -> Variant:
    """Return the variant that runs a shape."""
    if isinstance(shape, ScanShape):
        return scan_variant(shape, dtype)
    return correlation_variant(shape, dtype, capability)


def record(bench: Bench, preset: str, arch: str, dtype: str, shape: Shape) -> dict[str, Any]:
    """Return one kernel's line in the ledger for one shape."""
    capability = bench.target(arch).capability
    variant = variant_for(shape, dtype, capability)
    compiled = bench.kernel(arch, variant)
    held = compiled.record
    mix = instruction_mix(compiled.cubin)
    counted, counted_on = _counted(bench, arch, variant, shape)
    compulsory = traffic.compulsory_bytes(variant, shape)
    distinct = traffic.distinct_bytes(variant, shape)
    work = traffic.flops(shape)
    return {
        "preset": preset,
        "op": variant.op,
        "arch": arch,
        "dtype": dtype,
        "config": variant.config,
        "shape": asdict(shape),
        **{k: held[k] for k in ("registers", "spill_bytes", "local_bytes", "shared_bytes")},
        "occupancy": occupancy(arch, held["registers"], held["shared_bytes"], variant.warps),
        **_parallelism(variant, shape, capability),
        "instructions": mix,
        "tensor_core_instructions": mix["tensor_core"],
        "counted_on": counted_on,
        "scaled": None if counted is None else "from whole executed blocks",
        **{
            key: None if counted is None else round(getattr(counted, key))
            for key in ("requested_bytes", "written_bytes", "load_sectors", "store_sectors")
        },
        "compulsory_bytes": compulsory,
        "distinct_bytes": distinct,
        **_alternatives(variant, shape),
        "flops": work,
        "floor_us": {b.name: floor_us(b, distinct, work) for b in BOARDS if b.arch == arch},
    }


def _counted(
    bench: Bench, arch: str, variant: Variant, shape: Shape
) -> tuple[traffic.Traffic | None, str | None]:
    """Return the traffic and whose code it was counted on."""
    own = bench.count(arch, variant, shape)
    if own is not None:
        return own, arch
    other = variant_for(shape, variant.dtype, bench.target(STAND_IN).capability)
    if other.constants != variant.constants:
        return None, None
    return bench.count(STAND_IN, other, shape), STAND_IN


def _parallelism(variant: Variant, shape: Shape, capability: int) -> dict[str, Any]:
    """Return programs, warps in flight when all are resident, and rounds of the serial loop."""
    x, y, z = grid_of(variant, shape, capability)
    if isinstance(shape, ScanShape):
        tiling = scan_tiling(shape)
        rounds = -(-shape.length // tiling.chunk())
        # Inside a round each thread takes its own steps one after the other.
        steps = rounds * tiling.steps
    else:
        rounds = steps = -(-shape.channels // variant.constants["BLOCK_D"])
    return {
        "programs": x * y * z,
        "warps": x * y * z * variant.warps,
        "serial_rounds": rounds,
        "serial_steps": steps,
    }


def _alternatives(variant: Variant, shape: Shape) -> dict[str, Any]:
    """Return what other formulations of the same mathematics move."""
    if isinstance(shape, CorrelationShape):
        once, at_tile = unfused.correlation_bytes(variant, shape)
        return {"unfused_bytes": at_tile, "unfused_distinct_bytes": once, "mamba_ssm_bytes": None}
    moved = unfused.scan_bytes(variant, shape)
    # By mamba-ssm's loops, not executed: each channel reads its own B and C, and delta is full.
    values = shape.sequences * shape.length * 4 * shape.channels * (3 + 2 * shape.states)
    return {
        "unfused_bytes": moved,
        "unfused_distinct_bytes": moved,
        "mamba_ssm_bytes": values * ELEMENT_BYTES[variant.dtype],
    }
