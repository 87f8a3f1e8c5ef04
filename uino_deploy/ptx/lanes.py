"""The threads that run together: several blocks side by side, one lane for each thread."""

from __future__ import annotations

import numpy as np

from uino_deploy.ptx.errors import PtxFault
from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.parser import Instruction

WARP = 32


class Lanes:
    """`slots` blocks of `threads` threads; a lane's block is lane // threads.

    `active` (bool, [lanes]) marks the lanes that execute the current instruction if not all
    do; `blocks` (int64, [slots]) names the block in each slot. Time is counted in barriers: `now`,
    and for each lane that of its block's and its warp's last one.
    """

    def __init__(self, threads: int, slots: int) -> None:
        self.threads = threads
        self.slots = slots
        self.count = threads * slots
        self.active = np.ones(self.count, dtype=np.bool_)
        self.blocks = np.zeros(slots, dtype=np.int64)
        self.now = 1
        self.block_time = np.zeros(self.count, dtype=np.uint32)
        self.warp_time = np.zeros(self.count, dtype=np.uint32)

    @property
    def warps(self) -> int:
        """The number of warps in all slots."""
        return self.count // WARP

    def start(self) -> None:
        """Begin time anew: new blocks take the slots."""
        self.now = 1
        self.block_time.fill(0)
        self.warp_time.fill(0)

    def barrier(self, lanes: Array | None) -> None:
        """Order accesses of the threads of whole blocks."""
        self._tick(self.block_time, lanes)

    def warp_barrier(self, lanes: Array | None) -> None:
        """Order accesses of the threads of whole warps."""
        self._tick(self.warp_time, lanes)

    def _tick(self, times: Array, lanes: Array | None) -> None:
        times[slice(None) if lanes is None else lanes] = self.now
        self.now += 1

    def fault(self, instruction: Instruction, reason: str, lane: int) -> PtxFault:
        """Return the fault of one lane."""
        return PtxFault(
            reason,
            instruction.line,
            instruction.text,
            int(self.blocks[lane // self.threads]),
            lane % self.threads,
        )

    def selected(self, where: Array | None) -> Array | None:
        """Return the indices of the lanes in `where`; None if that is all of them."""
        if where is None or where.all():
            return None
        return np.flatnonzero(where)

    def whole_warps(self, instruction: Instruction, where: Array | None) -> Array | None:
        """Return `selected` after checking that every warp takes part as a whole or not at all."""
        if where is None:
            return None
        counts = np.count_nonzero(where.reshape(-1, WARP), axis=1)
        partial = np.flatnonzero((counts != 0) & (counts != WARP))
        if partial.size:
            warp = int(partial[0])
            lane = warp * WARP + int(np.argmin(where[warp * WARP : (warp + 1) * WARP]))
            raise self.fault(instruction, "a warp's threads do not all arrive here", lane)
        return self.selected(where)


def by_warp(values: Array, lanes: Array | None, total: int, filler: int) -> Array:
    """Arrange one value per lane as [warps, 32], with `filler` for lanes outside `lanes`."""
    if lanes is not None:
        everyone = np.full(total, filler, dtype=values.dtype)
        everyone[lanes] = values
        values = everyone
    return values.reshape(-1, WARP)
