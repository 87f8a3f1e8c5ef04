"""The counters of an execution: memory traffic and executed instructions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Accesses:
    """One direction (loads or stores) of one array.

    `requested_bytes` sums the threads' requests; `sectors` counts the distinct 32-byte
    sectors of each warp instruction, summed; `distinct_bytes` counts each byte of the array once
    over the whole launch; `by_width` counts thread accesses by their width in bytes.
    """

    requested_bytes: int = 0
    sectors: int = 0
    warp_instructions: int = 0
    distinct_bytes: int = 0
    by_width: Counter[int] = field(default_factory=Counter)


@dataclass
class ArrayTrace:
    """One array argument: its position among the arguments, its size, and its traffic."""

    argument: int
    size: int
    loads: Accesses = field(default_factory=Accesses)
    stores: Accesses = field(default_factory=Accesses)


@dataclass
class SharedTrace:
    """Shared memory: warp instructions, and the passes (wavefronts) that the 32 banks need.

    `ideal` is what conflict-free accesses of the same widths would need; copies by cp.async are
    not counted. `collisions` counts stored values that another thread of the same instruction
    replaced by a different one: threads that hold one sum redundantly round it in different
    orders, and it is undefined which of them wins.
    """

    warp_instructions: int = 0
    requested_bytes: int = 0
    wavefronts: int = 0
    ideal: int = 0
    collisions: int = 0

    @property
    def conflicts(self) -> int:
        """The passes beyond the ideal."""
        return self.wavefronts - self.ideal


@dataclass
class Trace:
    """Counters of one launch.

    `arrays` is keyed by the argument's position; `instructions` counts executed warp instructions
    by full mnemonic (a predicated instruction counts whether or not a thread passes); `blocks` is
    the number of thread blocks that ran; `threads` the threads of each.
    """

    arrays: dict[int, ArrayTrace]
    shared_loads: SharedTrace
    shared_stores: SharedTrace
    instructions: Counter[str]
    blocks: int
    threads: int

    @property
    def requested_bytes(self) -> int:
        """The bytes of global memory that threads requested to read."""
        return sum(array.loads.requested_bytes for array in self.arrays.values())

    @property
    def written_bytes(self) -> int:
        """The bytes of global memory that threads requested to write."""
        return sum(array.stores.requested_bytes for array in self.arrays.values())

    @property
    def load_sectors(self) -> int:
        """The 32-byte sectors read, summed over warp instructions."""
        return sum(array.loads.sectors for array in self.arrays.values())

    @property
    def store_sectors(self) -> int:
        """The 32-byte sectors written, summed over warp instructions."""
        return sum(array.stores.sectors for array in self.arrays.values())

    @property
    def distinct_bytes(self) -> int:
        """The bytes of global memory read or written, each array's bytes once per direction."""
        return sum(a.loads.distinct_bytes + a.stores.distinct_bytes for a in self.arrays.values())

    @property
    def tensor_core_instructions(self) -> int:
        """The executed warp-level matrix instructions."""
        return sum(n for name, n in self.instructions.items() if name.startswith("mma."))
