"""The order of accesses to an output that a kernel also reads: who wrote and who read what, when.

Time is counted in barriers, as in shared memory. Reading what another thread wrote, or overwriting
what another thread read, is a fault without a barrier of the block between; between blocks there is
none. Only the last reader is remembered. A cp.async reads when it is issued.
"""

from __future__ import annotations

import numpy as np

from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.lanes import Lanes
from uino_deploy.ptx.parser import Instruction

_GRANULE = 2  # bytes; narrower accesses count as wide as this
_NOBODY = -1


class Order:
    """The last writer and reader of each granule of one array."""

    def __init__(self, size: int, lanes: Lanes) -> None:
        granules = -(-size // _GRANULE) + 8  # the last access may be wider than what is left
        self.lanes = lanes
        self.writers = np.full(granules, _NOBODY, dtype=np.int64)
        self.readers = np.full(granules, _NOBODY, dtype=np.int64)
        self.written = np.zeros(granules, dtype=np.uint32)
        self.read = np.zeros(granules, dtype=np.uint32)

    def on_read(
        self, instruction: Instruction, offsets: Array, lanes: Array | None, size: int, what: str
    ) -> None:
        """Record a read of `size` bytes from each offset.

        Raises:
            PtxFault: another thread wrote there, and nothing orders the two.
        """
        granules, threads, everyone = self._parties(offsets, lanes, size)
        unordered = self._unordered(self.writers, self.written, granules, threads, everyone)
        self._judge(
            instruction, unordered, granules, everyone, f"reads bytes of {what} that", "wrote"
        )
        self.readers[granules] = threads
        self.read[granules] = self.lanes.now

    def on_write(
        self, instruction: Instruction, offsets: Array, lanes: Array | None, size: int, what: str
    ) -> None:
        """Record a write of `size` bytes to each offset.

        Raises:
            PtxFault: another thread read there, and nothing orders the two.
        """
        granules, threads, everyone = self._parties(offsets, lanes, size)
        unordered = self._unordered(self.readers, self.read, granules, threads, everyone)
        reason = f"overwrites bytes of {what} that"
        self._judge(instruction, unordered, granules, everyone, reason, "reads")
        self.writers[granules] = threads
        self.written[granules] = self.lanes.now

    def _parties(
        self, offsets: Array, lanes: Array | None, size: int
    ) -> tuple[Array, Array, Array]:
        """Return granules [accesses, parts], and of each access its thread of all and its lane."""
        everyone = np.arange(self.lanes.count) if lanes is None else lanes
        block = self.lanes.blocks[everyone // self.lanes.threads]
        threads = block * self.lanes.threads + everyone % self.lanes.threads
        parts = np.arange(max(1, size // _GRANULE))
        return offsets[:, None] // _GRANULE + parts, threads[:, None], everyone[:, None]

    def _unordered(
        self, who: Array, when: Array, granules: Array, threads: Array, everyone: Array
    ) -> Array:
        others, size = who[granules], self.lanes.threads
        foreign = (others != threads) & (others != _NOBODY)
        late = when[granules] > self.lanes.block_time[everyone]
        unordered: Array = foreign & (late | (others // size != threads // size))
        return unordered

    def _judge(
        self,
        instruction: Instruction,
        unordered: Array,
        granules: Array,
        everyone: Array,
        reason: str,
        did: str,
    ) -> None:
        if unordered.any():
            access, part = np.argwhere(unordered)[0]
            who = self.writers if did == "wrote" else self.readers
            other = int(who[granules[access, part]])
            block, thread = divmod(other, self.lanes.threads)
            text = f"{reason} thread {thread} of block {block} {did}, without a barrier between"
            raise self.lanes.fault(instruction, text, int(everyone[access, 0]))
