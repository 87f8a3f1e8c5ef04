"""Shared memory: contents, writers and readers since the last barrier, work in flight, banks.

Time is counted in barriers. A granule (the smallest access of the program, at most 16 bytes)
remembers when and by which lane it was last written and last read. Reading another thread's bytes,
or overwriting bytes that another thread reads, without a barrier between is a fault. Only the last
reader is remembered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.lanes import WARP, Lanes, by_warp
from uino_deploy.ptx.memory import UNSIGNED
from uino_deploy.ptx.parser import Instruction
from uino_deploy.ptx.products import Products
from uino_deploy.ptx.trace import SharedTrace

_UNWRITTEN = 0xFFFF_FFFF
_PENDING = 0xFFFF_FFFE
_NOBODY = 0xFFFF_FFFF
_MEMO = 4096


class _Copy(NamedTuple):
    """A cp.async by some lanes that no wait has completed yet."""

    lanes: Array
    groups: Array
    granules: Array


class SharedMemory:
    """`size` bytes for each block in a slot; addresses are offsets from the block's first byte."""

    def __init__(self, size: int, granule: int, lanes: Lanes) -> None:
        self.lanes, self.size, self.granule = lanes, size, granule
        self.stride = -(-max(size, 1) // 16) * 16
        total = self.stride * lanes.slots
        data = np.zeros(total, dtype=np.uint8)
        self.views = {n: data.view(kind) for n, kind in UNSIGNED.items()}
        self.first = np.repeat(np.arange(lanes.slots) * self.stride, lanes.threads)
        self.write_time = np.empty(total // granule, dtype=np.uint32)
        self.read_time = np.empty(total // granule, dtype=np.uint32)
        self.writer = np.empty(total // granule, dtype=np.int32)
        self.reader = np.empty(total // granule, dtype=np.int32)
        self.committed = np.zeros(lanes.count, dtype=np.int64)
        self.copies: list[_Copy] = []
        self.products = Products(lanes.count, total // granule)
        self.loads, self.stores = SharedTrace(), SharedTrace()
        self._wavefronts: dict[tuple[int, bytes], tuple[int, int, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all contents: new blocks take the slots."""
        self.write_time.fill(_UNWRITTEN)
        self.read_time.fill(0)
        self.committed.fill(0)
        self.copies.clear()
        self.products.reset()

    def read(
        self, instruction: Instruction, addresses: Array, lanes: Array | None, size: int, count: int
    ) -> list[Array]:
        """Read `count` consecutive values of `size` bytes from each address (uint32).

        Raises:
            PtxFault: Out of bounds, misaligned, not written, still being copied, or a race.
        """
        width = size * count
        offsets = self._offsets(instruction, addresses, lanes, width)
        self._check_read(instruction, offsets, lanes, width)
        self.count(self.loads, addresses, lanes, width)
        index = offsets // size
        view = self.views[size]
        return [view[index + step] for step in range(count)]

    def read_in_flight(
        self, instruction: Instruction, addresses: Array, lanes: Array, size: int
    ) -> tuple[Array, Array]:
        """Read one value of `size` bytes from each address for a product that starts now.

        Returns:
            The values, and the granules that must stay as they are until the product is done.

        Raises:
            PtxFault: As `read`.
        """
        offsets = self._offsets(instruction, addresses, lanes, size)
        granule = offsets // self.granule
        once, index = np.unique(granule, return_index=True)
        self._check_read(instruction, once * self.granule, lanes[index], self.granule)
        return self.views[size][offsets // size], once

    def finish(self, lanes: Array, allowed: int) -> None:
        """Complete products in flight; what they read counts as read now, by the first lane."""
        for granules in self.products.finish(lanes, allowed):
            self.read_time[granules] = self.lanes.now
            self.reader[granules] = lanes[0]

    def peek(self, addresses: Array, lanes: Array, size: int) -> Array:
        """Return values without checks or counting; the caller has read those bytes already."""
        values: Array = self.views[size][(self.first[lanes] + addresses) // size]
        return values

    def write(
        self,
        instruction: Instruction,
        addresses: Array,
        lanes: Array | None,
        values: list[Array],
    ) -> None:
        """Write consecutive values (unsigned integers of one size) to each address.

        Raises:
            PtxFault: Out of bounds, misaligned, still being copied, or a race.
        """
        width = values[0].dtype.itemsize * len(values)
        offsets = self._offsets(instruction, addresses, lanes, width)
        self.count(self.stores, addresses, lanes, width)
        granules = self._store(instruction, offsets, lanes, values)
        self.write_time[granules] = self.lanes.now
        self.writer[granules] = self._lanes(lanes)[:, None]

    def copy(
        self,
        instruction: Instruction,
        addresses: Array,
        lanes: Array | None,
        values: list[Array],
    ) -> None:
        """Begin an asynchronous copy; its bytes may be read after a wait for its group."""
        width = values[0].dtype.itemsize * len(values)
        offsets = self._offsets(instruction, addresses, lanes, width)
        granules = self._store(instruction, offsets, lanes, values)
        everyone = self._lanes(lanes)
        self.write_time[granules] = _PENDING
        self.writer[granules] = everyone[:, None]
        self.copies.append(_Copy(everyone, self.committed[everyone], granules))

    def commit(self, lanes: Array | None) -> None:
        """Close the current copy group of each lane."""
        self.committed[slice(None) if lanes is None else lanes] += 1

    def wait(self, lanes: Array | None, allowed: int | None) -> None:
        """Complete all but the last `allowed` groups of each lane; None completes everything."""
        limit = np.full(self.lanes.count, -1, dtype=np.int64)
        chosen = slice(None) if lanes is None else lanes
        if allowed is None:
            limit[chosen] = np.iinfo(np.int64).max
        else:
            limit[chosen] = self.committed[chosen] - allowed
        remaining = []
        for copy in self.copies:
            done = copy.groups < limit[copy.lanes]
            if done.any():
                self.write_time[copy.granules[done]] = self.lanes.now
            if not done.all():
                rest = ~done
                remaining.append(_Copy(copy.lanes[rest], copy.groups[rest], copy.granules[rest]))
        self.copies = remaining

    def _lanes(self, lanes: Array | None) -> Array:
        return np.arange(self.lanes.count) if lanes is None else lanes

    def _offsets(
        self, instruction: Instruction, addresses: Array, lanes: Array | None, width: int
    ) -> Array:
        """Return offsets into all slots' bytes after checking bounds and alignment."""
        addresses = addresses.astype(np.int64)
        wrong = addresses + width > self.size
        wrong |= (addresses & (width - 1)) != 0
        if wrong.any():
            position = int(np.argmax(wrong))
            address = int(addresses[position])
            reason = (
                "misaligned"
                if address % width
                else f"out of bounds, of {self.size} bytes of shared memory"
            )
            lane = position if lanes is None else int(lanes[position])
            raise self.lanes.fault(
                instruction, f"{width} bytes at shared address {address}: {reason}", lane
            )
        offsets: Array = addresses + (self.first if lanes is None else self.first[lanes])
        return offsets

    def _granules(self, offsets: Array, width: int) -> Array:
        """Return the granules of each access, [accesses, granules]."""
        granules: Array = (offsets // self.granule)[:, None] + np.arange(width // self.granule)
        return granules

    def _check_read(
        self, instruction: Instruction, offsets: Array, lanes: Array | None, width: int
    ) -> None:
        granules = self._granules(offsets, width)
        times = self.write_time[granules]
        since = self.lanes.block_time if lanes is None else self.lanes.block_time[lanes]
        suspect = times > since[:, None]
        everyone = self._lanes(lanes)
        if suspect.any():
            rows, columns = np.nonzero(suspect)
            self._judge_read(instruction, everyone[rows], granules[rows, columns])
        self.read_time[granules] = self.lanes.now
        self.reader[granules] = everyone[:, None]

    def _judge_read(self, instruction: Instruction, lanes: Array, granules: Array) -> None:
        """Raise a fault for a read of bytes that no barrier made visible, if there is one."""
        times = self.write_time[granules]
        for mark, reason in (
            (_UNWRITTEN, "reads shared memory that was never written"),
            (_PENDING, "reads shared memory before waiting for its cp.async group"),
        ):
            if (times == mark).any():
                position = int(np.argmax(times == mark))
                raise self.lanes.fault(instruction, reason, int(lanes[position]))
        writers = self.writer[granules]
        race = self._unordered(lanes, writers, times)
        if race.any():
            position = int(np.argmax(race))
            other = int(writers[position]) % self.lanes.threads
            reason = f"reads shared memory that thread {other} wrote, without a barrier between"
            raise self.lanes.fault(instruction, reason, int(lanes[position]))

    def _unordered(self, lanes: Array, others: Array, times: Array) -> Array:
        """Return which pairs of lanes have not synchronised since `times`."""
        same_warp = (lanes // WARP) == (others // WARP)
        ordered = (lanes == others) | (same_warp & (times <= self.lanes.warp_time[lanes]))
        unordered: Array = ~ordered
        return unordered

    def _store(
        self, instruction: Instruction, offsets: Array, lanes: Array | None, values: list[Array]
    ) -> Array:
        """Write values after checking for races; return the granules written.

        Writing bytes that already hold the same value is not a race.
        """
        size = values[0].dtype.itemsize
        index, view = offsets // size, self.views[size]
        granules = self._granules(offsets, size * len(values))
        if self.products and self.products.readers[granules].any():
            row = int(np.argmax(self.products.readers[granules].any(axis=1)))
            reason = "overwrites shared memory that a wgmma in flight reads"
            raise self.lanes.fault(instruction, reason, int(self._lanes(lanes)[row]))
        since = (self.lanes.block_time if lanes is None else self.lanes.block_time[lanes])[:, None]
        written, read = self.write_time[granules], self.read_time[granules]
        suspect = ((written > since) & (written != _UNWRITTEN)) | (read > since)
        if suspect.any():
            rows = np.flatnonzero(suspect.any(axis=1))
            changed = np.zeros(rows.shape, dtype=np.bool_)
            for step, value in enumerate(values):
                changed |= view[index[rows] + step] != value[rows]
            self._judge_write(
                instruction, self._lanes(lanes)[rows[changed]], granules, rows[changed]
            )
        for step, value in enumerate(values):
            view[index + step] = value
        for step, value in enumerate(values):
            self.stores.collisions += int(np.count_nonzero(view[index + step] != value))
        return granules

    def _judge_write(
        self, instruction: Instruction, lanes: Array, granules: Array, rows: Array
    ) -> None:
        """Raise a fault for overwriting what others wrote, read or copy, if there is one."""
        for column in range(granules.shape[1] if rows.size else 0):
            touched = granules[rows, column]
            since = self.lanes.block_time[lanes]
            written, read = self.write_time[touched], self.read_time[touched]
            pending = written == _PENDING
            recent = (written > since) & (written != _UNWRITTEN) & ~pending
            overwrites = recent & self._unordered(lanes, self.writer[touched], written)
            disturbs = (read > since) & self._unordered(lanes, self.reader[touched], read)
            for wrong, others, reason in (
                (pending, self.writer, "overwrites shared memory that thread {} is copying to"),
                (overwrites, self.writer, "overwrites shared memory that thread {} wrote"),
                (disturbs, self.reader, "overwrites shared memory that thread {} reads"),
            ):
                if wrong.any():
                    position = int(np.argmax(wrong))
                    other = int(others[touched[position]]) % self.lanes.threads
                    text = f"{reason.format(other)}, without a barrier between"
                    raise self.lanes.fault(instruction, text, int(lanes[position]))

    def count(
        self, counters: SharedTrace, addresses: Array, lanes: Array | None, width: int
    ) -> None:
        """Count an access of `width` bytes per lane, and the passes that its banks need."""
        origin = int(addresses[0]) & ~127
        relative = by_warp(addresses.astype(np.int64) - origin, lanes, self.lanes.count, _NOBODY)
        key = (width, relative.tobytes())
        needed = self._wavefronts.get(key)
        if needed is None:
            needed = wavefronts(relative, width)
            if len(self._wavefronts) < _MEMO:
                self._wavefronts[key] = needed
        passes, ideal, warps = needed
        counters.wavefronts += passes
        counters.ideal += ideal
        counters.warp_instructions += warps
        counters.requested_bytes += addresses.size * width


def wavefronts(addresses: Array, width: int) -> tuple[int, int, int]:
    """Count the passes that 32 banks of 4 bytes need for one access of some warps.

    An access of 8 bytes a thread is served per half warp, one of 16 bytes per quarter warp.
    In a pass each bank delivers one word, to any number of threads.

    Args:
        addresses: Byte addresses (int64), [warps, 32]; `_NOBODY` for a thread not taking part.
        width: Bytes of each access.

    Returns:
        Passes, passes without conflicts, and warps taking part.
    """
    words = max(width // 4, 1)
    phase = WARP // words
    taking = (addresses != _NOBODY).reshape(-1, phase)
    word = (addresses.reshape(-1, phase)[:, :, None] >> 2) + np.arange(words)
    key = ((word & 31) << 40) | ((word >> 5) & 0xFF_FFFF_FFFF)
    key = np.where(taking[:, :, None], key, 1 << 50).reshape(len(taking), -1)
    key = np.sort(key, axis=1)
    fresh = np.ones(key.shape, dtype=np.bool_)
    fresh[:, 1:] = key[:, 1:] != key[:, :-1]
    fresh &= key < 1 << 50
    banks = np.arange(len(key))[:, None] * 32 + ((key >> 40) & 31)
    loads = np.bincount(banks[fresh], minlength=len(key) * 32).reshape(-1, 32)
    busy = int(np.count_nonzero(taking.any(axis=1)))
    warps = int(np.count_nonzero((addresses != _NOBODY).any(axis=1)))
    return int(loads.max(axis=1).sum()), busy, warps
