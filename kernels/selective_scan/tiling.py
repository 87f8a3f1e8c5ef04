"""How the plane's scan divides its work. Plugins use this on the device, so it needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uino_deploy.kernels.identity import DIRECTIONS


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
        """Return the launch grid of the plane's scan: (sequences, directions, channel blocks)."""
        groups = sequences if self.parallel else -(-sequences // self.rows)
        return groups, DIRECTIONS, -(-channels // self.block_d)

    def chunk(self) -> int:
        """Return the steps of one sequence in one iteration of the loop."""
        return self.rows * self.steps if self.parallel else self.steps

    def constants(self, states: int, rank: int) -> dict[str, Any]:
        """Return the compile-time arguments of the plane's kernel."""
        return {
            "N": states,
            "R": rank,
            "BLOCK_N": _power_of_2(states),
            "BLOCK_R": _power_of_2(rank),
            "PARALLEL": self.parallel,
            "ROWS": self.rows,
            "STEPS": self.steps,
            "BLOCK_D": self.block_d,
        }

    def config(self, states: int, rank: int) -> str:
        """Return the name of this tiling's variant for a state and a rank."""
        order = "parallel" if self.parallel else "serial"
        return f"{order}-d{self.block_d}n{states}r{rank}"


# Warps that keep a large GPU busy by themselves: 8 on each of 128 multiprocessors.
_ENOUGH_WARPS = 1024


def tilings(sequences: int, length: int, channels: int, states: int) -> tuple[Tiling, Tiling]:
    """Return both tilings for `sequences` scans of `length` steps, the better one first.

    Serial time costs the fewest instructions, so it comes first if the sequences alone fill a large
    GPU, or if a sequence is shorter than one chunk of the parallel form.
    """
    block_d = min(64, max(16, _power_of_2(channels)))
    warps = block_d // 8
    serial = Tiling(False, 16, max(1, 4 // _state_blocks(states)), block_d, warps)
    parallel = Tiling(True, 8, max(1, 8 // _state_blocks(states)), block_d, warps)
    groups, directions, blocks = serial.grid(sequences, channels)
    filled = groups * directions * blocks * warps >= _ENOUGH_WARPS
    return (serial, parallel) if filled or length < parallel.chunk() else (parallel, serial)


def tiling_for(sequences: int, length: int, channels: int, states: int) -> Tiling:
    """Return the better tiling for `sequences` scans of `length` steps in four directions each."""
    return tilings(sequences, length, channels, states)[0]


def _state_blocks(states: int) -> int:
    """Return the factor by which the steps held in registers shrink: 1 for up to four states."""
    return -(-_power_of_2(states) // 4)


def _power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
