"""The ledger's records: one for each kernel, architecture, type and shape of a preset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from uino_deploy import ptx
from uino_deploy.benchmarks.ledger import numerics, traffic, unfused
from uino_deploy.benchmarks.ledger.boards import BOARDS, floor_us, occupancy, peak_tflops
from uino_deploy.benchmarks.ledger.disassembly import instruction_mix, loop_mix
from uino_deploy.benchmarks.ledger.journal import Journal, program_key
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.kernels.compiler.build import Compiled, compile_target
from uino_deploy.kernels.compiler.shapes import (
    ScanShape,
    VolumeShape,
    correlation_shape,
    scan_shapes,
    volume_shapes,
)
from uino_deploy.kernels.compiler.targets import capability_of, dtypes_of, oldest_cuda, target
from uino_deploy.kernels.compiler.variants import (
    ELEMENT_BYTES,
    Shape,
    Variant,
    correlation_variant,
    grid_of,
    scan_tiling,
    scan_variant,
    volume_variant,
)
from uino_deploy.kernels.identity import DIRECTIONS

# The architecture whose count stands in if the executor does not support the code.
STAND_IN = "sm_80"

# Last caches, in bytes, for the model of what reaches the memory: a Jetson AGX Orin's, an H100's.
CACHES = {"4 MiB": 4 << 20, "50 MiB": 50 << 20}


class Instruments:
    """The ledger's instruments: compile each target, and execute each program and shape, once."""

    def __init__(
        self,
        presets: Sequence[str],
        cuda: str | None,
        built: Sequence[Compiled] = (),
        journal: Journal | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._presets, self._cuda, self._progress = list(presets), cuda, progress
        self._journal = journal or Journal(None)
        self._kernels: dict[str, dict[str, Compiled]] = {}
        for kernel in built:
            arch = kernel.record["arch"]
            self._kernels.setdefault(arch, {})[kernel.name.removesuffix(f"-{arch}")] = kernel

    def kernel(self, arch: str, variant: Variant) -> Compiled:
        """Return a compiled variant.

        Raises:
            InputError: the given kernels lack it, or have another tiling.
        """
        if arch not in self._kernels:
            goal = target(arch, self._cuda or oldest_cuda(arch))
            self._progress(f"{arch}: compiling for CUDA {goal.cuda}")
            compiled = compile_target(goal, self._presets)
            self._kernels[arch] = {k.name.removesuffix(f"-{arch}"): k for k in compiled}
        kernel = self._kernels[arch].get(variant.name)
        if kernel is None or kernel.record["constants"] != variant.constants:
            raise InputError(
                f"no kernel {variant.name} for {arch} of this program's tiling", "build them again"
            )
        return kernel

    def count(self, arch: str, variant: Variant, shape: Shape) -> traffic.Traffic | None:
        """Return a launch's traffic; None if the executor does not support the code."""
        compiled = self.kernel(arch, variant)
        sampled = traffic.sampled(shape)

        def run(kernel: traffic.Executable) -> list[dict[str, float]]:
            return [asdict(t) for t in traffic.samples(kernel, sampled, capability_of(arch))]

        samples = self._once("traffic", compiled, variant, sampled, run)
        if samples is None:
            return None
        parts = [traffic.Traffic(**part) for part in samples]
        return traffic.scaled(parts, variant, shape, capability_of(arch))

    def error(self, arch: str, variant: Variant, shape: Shape) -> float | None:
        """Return the error of a launch; None if the code is not supported."""
        compiled = self.kernel(arch, variant)

        def run(kernel: traffic.Executable) -> float:
            return numerics.relative_error(kernel, shape, capability_of(arch))

        result: float | None = self._once("error", compiled, variant, shape, run)
        return result

    def mixes(self, compiled: Compiled) -> list[dict[str, int]]:
        """Return the instruction mix of a kernel's machine code, and of its loop."""
        key = f"mixes {compiled.record['cubin_sha256']}"
        mixes: list[dict[str, int]] | None = self._journal.get(key)
        if mixes is None:
            mixes = [instruction_mix(compiled.cubin), loop_mix(compiled.cubin)]
            self._journal.put(key, mixes)
        return mixes

    def unfused(self, variant: Variant, shape: Shape) -> dict[str, int]:
        """Return the bytes that PyTorch's operators move: with a tiled product, or each array once.

        A scan has no product, so the two are one number.
        """
        key = f"unfused {variant.dtype} {shape} {variant.constants.get('BLOCK_S')}"
        moved = self._journal.get(key)
        if moved is None:
            moved = unfused.moved_bytes(variant, shape)
            self._journal.put(key, moved)
        once, at_tile = moved
        return {"unfused_bytes": at_tile, "unfused_distinct_bytes": once}

    def _once(
        self,
        what: str,
        compiled: Compiled,
        variant: Variant,
        shape: Shape,
        run: Callable[[traffic.Executable], Any],
    ) -> Any:
        """Return the journal's result, or run and record it; False stands for unsupported code."""
        key = f"{what} {program_key(compiled.ptx)} {shape}"
        result = self._journal.get(key)
        if result is None:
            self._progress(f"{compiled.name}: {what} for {shape}")
            try:
                result = run(executable(compiled, variant))
            except ptx.UnsupportedPtx:
                result = False
            self._journal.put(key, result)
        return None if result is False else result


def executable(compiled: Compiled, variant: Variant) -> traffic.Executable:
    """Return a compiled kernel in the executor's form.

    Raises:
        UnsupportedPtx: its code is not supported.
    """
    program = ptx.parse(compiled.ptx)
    return traffic.Executable(variant, program, variant.warps * 32, compiled.record["shared_bytes"])


def records(
    instruments: Instruments, presets: Sequence[str], archs: Sequence[str], dtypes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Compile, disassemble and execute; yield one record for each kernel, target and shape.

    Raises:
        BuildError: a kernel does not compile.
        InputError: an unknown preset, architecture or CUDA release.
    """
    shapes: dict[Shape, list[str]] = {}
    for preset in presets:
        for shape in preset_shapes(preset):
            shapes.setdefault(shape, []).append(preset)
    for arch in archs:
        for dtype in dtypes:
            if dtype in dtypes_of(capability_of(arch)):
                for shape, users in shapes.items():
                    yield {"presets": users, **record(instruments, arch, dtype, shape)}


def preset_shapes(preset: str) -> list[Shape]:
    """Return the operators' shapes in a preset at batch 1 and one shot."""
    config = UinoConfig.from_preset(preset)
    return [correlation_shape(config), *scan_shapes(config), *volume_shapes(config)]


def variant_for(shape: Shape, dtype: str, capability: int) -> Variant:
    """Return the variant that runs a shape."""
    if isinstance(shape, ScanShape):
        return scan_variant(shape, dtype)
    if isinstance(shape, VolumeShape):
        return volume_variant(shape, dtype, capability)
    return correlation_variant(shape, dtype, capability)


def record(instruments: Instruments, arch: str, dtype: str, shape: Shape) -> dict[str, Any]:
    """Return one kernel's record for one shape."""
    capability = capability_of(arch)
    variant = variant_for(shape, dtype, capability)
    compiled = instruments.kernel(arch, variant)
    held = compiled.record
    mix, loop = instruments.mixes(compiled)
    counted, counted_on = _counted(instruments, arch, variant, shape)
    distinct = traffic.distinct_bytes(variant, shape)
    work = traffic.flops(shape)
    return {
        "op": variant.op,
        "arch": arch,
        "dtype": dtype,
        "config": variant.config,
        "shape": asdict(shape),
        "cuda": held["cuda"],
        "ptx_sha256": held["ptx_sha256"],
        **{k: held[k] for k in ("registers", "spill_bytes", "local_bytes", "shared_bytes")},
        "occupancy": occupancy(arch, held["registers"], held["shared_bytes"], variant.warps),
        **_parallelism(variant, shape, capability),
        "instructions": mix,
        "loop": {name: loop[name] for name in ("total", "barrier", "load_2_bytes")},
        "tensor_core_instructions": mix["tensor_core"],
        "relative_l2": instruments.error(arch, variant, numerics.small_shape(variant)),
        "relative_l2_full": instruments.error(arch, variant, numerics.full_shape(variant, shape)),
        "tolerance": numerics.tolerance(variant),
        "counted_on": counted_on,
        "scaled": None if counted is None else "from whole executed blocks",
        **{
            key: None if counted is None else round(getattr(counted, key))
            for key in ("requested_bytes", "written_bytes", "load_sectors", "store_sectors")
        },
        "compulsory_bytes": traffic.compulsory_bytes(variant, shape),
        "distinct_bytes": distinct,
        "dram_bytes": {
            name: traffic.dram_bytes(variant, shape, size) for name, size in CACHES.items()
        },
        **instruments.unfused(variant, shape),
        **(mamba_ssm(shape, dtype) if isinstance(shape, ScanShape) else {}),
        "flops": work,
        "floor_us": {
            board.name: floor_us(
                board, distinct, work, peak_tflops(board, dtype, mix["tensor_core"] > 0)
            )
            for board in BOARDS
            if board.arch == arch
        },
    }


def _counted(
    instruments: Instruments, arch: str, variant: Variant, shape: Shape
) -> tuple[traffic.Traffic | None, str | None]:
    """Return the traffic, and the architecture whose code it was counted on."""
    own = instruments.count(arch, variant, shape)
    if own is not None:
        return own, arch
    other = variant_for(shape, variant.dtype, capability_of(STAND_IN))
    if _traffic_key(other) != _traffic_key(variant):
        return None, None
    return instruments.count(STAND_IN, other, shape), STAND_IN


def _traffic_key(variant: Variant) -> dict[str, Any]:
    """Return the constants that determine the memory traffic.

    The correlation's depth is not among them: each channel of a tile's tokens is requested once.
    """
    depth = ("BLOCK_D", "SERIAL") if variant.op == "correlation4d" else ()
    return {name: value for name, value in variant.constants.items() if name not in depth}


def _parallelism(variant: Variant, shape: Shape, capability: int) -> dict[str, Any]:
    """Return programs, warps in flight when all are resident, and rounds of the serial loop."""
    x, y, z = grid_of(variant, shape, capability)
    if isinstance(shape, VolumeShape):
        rounds = steps = 1
    elif isinstance(shape, ScanShape):
        tiling = scan_tiling(shape).of_type(ELEMENT_BYTES[variant.dtype])
        rounds = DIRECTIONS * -(-shape.length // tiling.chunk())
        # Within a round each thread takes its steps one after the other.
        steps = rounds * tiling.steps
    else:
        rounds = steps = -(-shape.channels // variant.constants["BLOCK_D"])
    return {
        "programs": x * y * z,
        "warps": x * y * z * variant.warps,
        "serial_rounds": rounds,
        "serial_steps": steps,
    }


@cache
def _mamba_counts() -> dict[tuple[int, int, int, str], dict[str, int]]:
    document = json.loads(Path(__file__).with_name("mamba_ssm.json").read_text())
    return {(s["length"], s["channels"], s["states"], s["dtype"]): s for s in document["scans"]}


def mamba_ssm(shape: ScanShape, dtype: str) -> dict[str, int | None]:
    """Return the traffic of mamba-ssm's kernel for a scan, counted once (see `mamba.py`)."""
    counts = _mamba_counts().get((shape.length, shape.channels, shape.states, dtype))
    keys = ("requested_bytes", "written_bytes", "load_sectors", "store_sectors")
    return {
        f"mamba_ssm_{key}": None if counts is None else shape.sequences * counts[key]
        for key in keys
    }
