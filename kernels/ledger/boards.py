"""The GPUs that floors are computed for: bandwidth, tensor-core rate and limits, with sources."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """One board: memory bandwidth in GB/s, dense half-precision tensor-core rate in TFLOP/s."""

    name: str
    arch: str
    bandwidth: float
    half_tflops: float
    source: str


BOARDS = (
    Board("Jetson Orin Nano 8GB", "sm_87", 68, 17, "Jetson Orin Nano data sheet: 33 sparse TOPS"),
    Board("Jetson AGX Orin 64GB", "sm_87", 204.8, 69, "AGX Orin technical brief: 275 sparse TOPS"),
    Board("Jetson AGX Thor", "sm_110", 273, 258, "Thor data sheet: 1,035 dense FP8 TFLOPS / 4"),
    Board("L4", "sm_89", 300, 121, "L4 data sheet: 242 sparse"),
    Board("A100 40GB SXM", "sm_80", 1555, 312, "A100 data sheet"),
    Board("H100 SXM", "sm_90", 3350, 989, "H100 data sheet: 1,979 sparse"),
    Board("RTX 4090", "sm_89", 1008, 165, "Ada architecture white paper, FP32 accumulate"),
    Board("B200", "sm_100", 8000, 2250, "Blackwell data sheet: 4,500 sparse"),
)


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds: registers, shared memory in bytes, warps, blocks."""

    shared: int
    warps: int
    blocks: int = 32
    registers: int = 65536


# CUDA C++ Programming Guide, table of technical specifications per compute capability.
_KB = 1024
LIMITS = {
    "sm_75": Limits(64 * _KB, 32, 16),
    "sm_80": Limits(164 * _KB, 64),
    "sm_86": Limits(100 * _KB, 48, 16),
    "sm_87": Limits(164 * _KB, 48, 16),
    "sm_89": Limits(100 * _KB, 48, 24),
    "sm_90": Limits(228 * _KB, 64),
    "sm_100": Limits(228 * _KB, 64),
    "sm_103": Limits(228 * _KB, 64),
    "sm_110": Limits(228 * _KB, 48, 24),
    "sm_120": Limits(100 * _KB, 48, 24),
    "sm_121": Limits(100 * _KB, 48, 24),
}


def occupancy(arch: str, registers: int, shared: int, warps: int) -> float:
    """Return the share of a multiprocessor's warps that can be resident, 0 to 1.

    Registers are given out in units of 256 to each warp; from sm_80 on the driver keeps 1 KB of
    shared memory of each block.
    """
    limits = LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256
    reserved = shared + (0 if arch == "sm_75" else 1024)
    blocks = min(
        limits.registers // (per_warp * warps),
        limits.shared // reserved,
        limits.warps // warps,
        limits.blocks,
    )
    return blocks * warps / limits.warps


def floor_us(board: Board, moved_bytes: int, flops: int) -> float:
    """Return the roofline's lower bound in microseconds: a floor, never a prediction."""
    return max(moved_bytes / board.bandwidth / 1e3, flops / board.half_tflops / 1e6)
