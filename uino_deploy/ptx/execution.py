"""The launch of a program over a grid.

This executes PTX on a CPU with numpy. It proves that the instructions compute the right values
from the right addresses, for the arguments and grid given. It does not prove: timing; the order
of memory accesses between blocks, or between threads that a barrier does not order; tcgen05,
bulk copies and other sm_90 and sm_100 instructions (refused); the rounding of a GPU's
approximate units (ex2, lg2, rsqrt, div.full) and of the tensor cores' sums; what ptxas makes of
the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.ptx.lanes import WARP
from uino_deploy.ptx.machine import Machine
from uino_deploy.ptx.parser import Program
from uino_deploy.ptx.trace import Trace

# Lanes executed together: enough to hide numpy's overhead, few enough to fit the caches.
_LANES = 2048
_REGISTER_BYTES = 64 << 20


def launch(
    program: Program,
    grid: tuple[int, int, int],
    block: int,
    shared: int,
    arguments: Sequence[object],
    blocks: Sequence[int] | None = None,
    limit: int = 1_000_000,
) -> Trace:
    """Execute a kernel.

    Args:
        program: What `parse` returned.
        grid: Blocks along x, y and z.
        block: Threads of a block, a multiple of 32; one-dimensional.
        shared: Bytes of dynamic shared memory.
        arguments: One for each parameter: numpy arrays that the kernel only reads, `Output` for
            those it writes (changed in place), ints, floats, None for a null pointer, bytes for
            structs, or a `Struct` for one that holds pointers. Arrays must be C-contiguous.
        blocks: Linear indices (x fastest) of the blocks to run; all of them if None.
        limit: Basic blocks to execute before a batch of blocks counts as an endless loop.

    Returns:
        The counters of the launch.

    Raises:
        InputError: The arguments, grid or block do not fit the program.
        UnsupportedPtx: The program uses something that this executor does not support.
        PtxFault: The program does something undefined.
    """
    total = prod(grid)
    if block < WARP or block % WARP or (program.threads not in (None, block)):
        raise InputError(f"{program.name} cannot be launched with {block} threads in a block")
    chosen = np.arange(total) if blocks is None else np.asarray(list(blocks), dtype=np.int64)
    if total < 1 or not chosen.size or chosen.min() < 0 or chosen.max() >= total:
        raise InputError(f"no such blocks in a grid of {total}")
    slots = _slots(program, block, chosen.size)
    with np.errstate(all="ignore"):
        machine = Machine(program, grid, block, shared, arguments, slots)
        try:
            for start in range(0, chosen.size, slots):
                machine.run(chosen[start : start + slots], limit)
        finally:
            arrays = machine.memory.finish()
    return Trace(
        arrays=arrays,
        shared_loads=machine.shared.loads,
        shared_stores=machine.shared.stores,
        instructions=machine.instructions(),
        blocks=int(chosen.size),
        threads=block,
    )


def _slots(program: Program, threads: int, blocks: int) -> int:
    """Return how many blocks to run side by side, all batches but the last equally large."""
    bytes_per_lane = sum(register.width for register in program.registers.values())
    lanes = min(_LANES, _REGISTER_BYTES // max(bytes_per_lane, 1))
    most = max(1, min(lanes // threads, blocks))
    batches = -(-blocks // most)
    return -(-blocks // batches)
