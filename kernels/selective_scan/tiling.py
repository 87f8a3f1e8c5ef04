"""How the plane's scan divides its work. Plugins use this on the device, so it needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tiling:
    """How a launch divides the work: `rows` x `steps` visits of `block_d` channels at a time.

    With `parallel`, the rows are consecutive segments of one sequence, joined by a parallel scan;
    without, each row is a sequence and time is serial.
    """

    parallel: bool
    rows: int
    steps: int
    block_d: int
    warps: int

    def grid(self, sequences: int, channels: int) -> tuple[int, int, int]:
        """Return the launch grid of the plane's scan: (sequences, channel blocks, 1)."""
        groups = sequences if self.parallel else -(-sequences // self.rows)
        return groups, -(-channels // self.block_d), 1

    def chunk(self) -> int:
        """Return the steps of one sequence in one iteration of the loop."""
        return self.rows * self.steps if self.parallel else self.steps

    def of_type(self, element_bytes: int) -> Tiling:
        """Return the tiling for an element size: float32 in rows holds half the steps at once."""
        narrow = element_bytes == 2 or not self.parallel
        return self if narrow else replace(self, steps=max(1, self.steps // 2))

    def constants(self, states: int, rank: int, width: int) -> dict[str, Any]:
        """Return the compile-time arguments of the plane's kernel; `width` is packed's P."""
        return {
            "N": states,
            "R": rank,
            "P": width,
            "BLOCK_P": _power_of_2(width),
            "PARALLEL": self.parallel,
            "ROWS": self.rows,
            "STEPS": self.steps,
            "BLOCK_D": self.block_d,
        }

    def config(self, states: int, rank: int, width: int) -> str:
        """Return the name of this tiling's variant for states, a rank and packed's width."""
        order = "parallel" if self.parallel else "serial"
        return f"{order}-d{self.block_d}n{states}r{rank}p{width}"


ENOUGH_WARPS = 1024
"""Warps that keep a large GPU busy by themselves: 8 on each of 128 multiprocessors."""


def tilings(sequences: int, length: int, channels: int, states: int) -> tuple[Tiling, Tiling]:
    """Return both tilings for `sequences` scans of `length` steps, the better one first.

    Serial time costs the fewest instructions, so it comes first if the sequences alone fill a large
    GPU, or if a sequence is shorter than one chunk of the parallel form.
    """
    steps = max(1, 8 // _state_blocks(states))
    block_d = _block_d(channels)
    serial = Tiling(False, 4, steps, block_d, block_d // 8)
    parallel = Tiling(True, 32, steps, 16, 8)
    groups, blocks, _ = serial.grid(sequences, channels)
    filled = groups * blocks * serial.warps >= ENOUGH_WARPS
    return (serial, parallel) if filled or length < parallel.chunk() else (parallel, serial)


def tiling_for(sequences: int, length: int, channels: int, states: int) -> Tiling:
    """Return the better tiling for `sequences` scans of `length` steps in four directions each."""
    return tilings(sequences, length, channels, states)[0]


def segments(channels: int, states: int) -> Tiling:
    """Return the parallel tiling of a scan whose programs are its directions too."""
    block_d = _block_d(channels)
    return Tiling(True, 8, max(1, 8 // _state_blocks(states)), block_d, block_d // 8)


def _block_d(channels: int) -> int:
    """Return the channels of a block: all of them, from 16 up to 64."""
    return min(64, max(16, _power_of_2(channels)))


def _state_blocks(states: int) -> int:
    """Return the factor by which the steps held in registers shrink: 1 for up to four states."""
    return -(-_power_of_2(states) // 4)


def _power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
