"""Global memory: the argument arrays, far apart, with bounds, poison and traffic counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.lanes import Lanes, by_warp
from uino_deploy.ptx.ordering import Order
from uino_deploy.ptx.parser import Instruction
from uino_deploy.ptx.trace import Accesses, ArrayTrace

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SECTOR_BITS = 5
_SPAN_BITS = 40  # each array has 2**40 addresses to itself, so that no overrun reaches another
_NOBODY = 0xFFFF_FFFF_FFFF_FFFF


class Output:
    """An array that a kernel may write; `written` (bool, one for each byte) marks what it wrote.

    Floats are filled with NaN, integers with their largest value, whose bits as a float are a NaN
    too (such as bfloat16 in uint16). Reading a byte before it is written is a fault. With `keep`,
    the array keeps its contents, which then count as written. Two threads may write the same
    bytes.

    Raises:
        InputError: The array is not C-contiguous or not writeable.
    """

    def __init__(self, array: Array, *, keep: bool = False) -> None:
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise InputError("an output array must be C-contiguous and writeable")
        self.array = array
        self.written = np.full(array.nbytes, keep, dtype=np.bool_)
        if not keep:
            array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max)

    @property
    def complete(self) -> bool:
        """True if every byte was written."""
        return bool(self.written.all())


def poisoned(shape: int | tuple[int, ...], dtype: np.dtype[np.generic] | type) -> Output:
    """Return a new Output of this shape and dtype, full of NaN."""
    return Output(np.empty(shape, dtype=dtype))


class _Shadow:
    """One mark for each byte of an array, set and queried by whole accesses."""

    def __init__(self, size: int) -> None:
        self.marks = np.zeros(size, dtype=np.uint8)
        self.views = {n: self.marks.view(kind) for n, kind in UNSIGNED.items()}

    def mark(self, offsets: Array, size: int) -> None:
        """Mark `size` bytes (a power of two, aligned) from each offset."""
        unit = min(size, 8)
        view = self.views[unit]
        index = offsets // unit
        for step in range(size // unit):
            view[index + step] = _ones(unit)

    def missing(self, offsets: Array, size: int) -> Array:
        """Return for each offset whether any of its `size` bytes is unmarked."""
        unit = min(size, 8)
        index = offsets // unit
        absent = np.zeros(offsets.shape, dtype=np.bool_)
        for step in range(size // unit):
            absent |= self.views[unit][index + step] != _ones(unit)
        return absent


def _ones(size: int) -> np.unsignedinteger:
    return UNSIGNED[size](int.from_bytes(b"\x01" * size, "little"))


class _Buffer:
    """One array argument: a padded copy of its bytes, its marks and its counters."""

    def __init__(self, argument: int, base: int, array: Array | Output, lanes: Lanes) -> None:
        self.argument, self.base = argument, base
        self.output = array if isinstance(array, Output) else None
        self.array: Array = array.array if isinstance(array, Output) else array
        self.size = self.array.nbytes
        padded = -(-max(self.size, 1) // 32) * 32
        self.data = np.zeros(padded, dtype=np.uint8)
        self.data[: self.size] = self.array.reshape(-1).view(np.uint8)
        self.views = {n: self.data.view(kind) for n, kind in UNSIGNED.items()}
        self.loaded = _Shadow(padded)
        self.stored = _Shadow(padded if self.output is not None else 0)
        self.written = _Shadow(padded if self.output is not None else 0)
        self.order = None if self.output is None else Order(self.size, lanes)
        if self.output is not None:
            self.written.marks[: self.size] = self.output.written
        self.trace = ArrayTrace(argument, self.size)

    def finish(self) -> ArrayTrace:
        """Copy written bytes back to the caller's array and return the counters."""
        self.trace.loads.distinct_bytes = int(np.count_nonzero(self.loaded.marks))
        self.trace.stores.distinct_bytes = int(np.count_nonzero(self.stored.marks))
        if self.output is not None:
            self.array.reshape(-1).view(np.uint8)[:] = self.data[: self.size]
            self.output.written[:] = self.written.marks[: self.size]
        return self.trace


class GlobalMemory:
    """The arrays among a kernel's arguments, by position."""

    def __init__(self, arrays: dict[int, Array | Output], lanes: Lanes) -> None:
        self.lanes = lanes
        self.buffers: list[_Buffer] = []
        for argument, array in arrays.items():
            plain = array.array if isinstance(array, Output) else array
            if not plain.flags.c_contiguous:
                raise InputError(f"kernel argument {argument} is not C-contiguous")
            base = (len(self.buffers) + 1) << _SPAN_BITS
            self.buffers.append(_Buffer(argument, base, array, lanes))

    def address(self, argument: int) -> int:
        """Return the base address of the array at this position among the arguments."""
        return next(buffer.base for buffer in self.buffers if buffer.argument == argument)

    def read(
        self, instruction: Instruction, addresses: Array, lanes: Array | None, size: int, count: int
    ) -> list[Array]:
        """Read `count` consecutive values of `size` bytes from each address.

        Args:
            instruction: The reading instruction, for faults.
            addresses: Byte addresses (uint64), one for each lane taking part.
            lanes: The lanes taking part; None for all.
            size: Bytes of one value: 1, 2, 4 or 8.
            count: Values of one access.

        Returns:
            `count` arrays of unsigned integers of `size` bytes.

        Raises:
            PtxFault: Out of bounds, misaligned, or unwritten bytes of an output.
        """
        kind = UNSIGNED[size]
        results = [np.empty(addresses.shape, dtype=kind) for _ in range(count)]
        for buffer, part, chosen in self._groups(instruction, addresses, lanes):
            offsets = self._offsets(instruction, buffer, addresses[part], chosen, size * count)
            if buffer.output is not None:
                missing = buffer.written.missing(offsets, size * count)
                if missing.any():
                    reason = f"reads bytes of argument {buffer.argument} that were never written"
                    raise self._fault(instruction, reason, chosen, missing)
            if buffer.order is not None:
                what = f"argument {buffer.argument}"
                buffer.order.on_read(instruction, offsets, chosen, size * count, what)
            buffer.loaded.mark(offsets, size * count)
            self._count(buffer.trace.loads, addresses[part], chosen, size * count)
            index = offsets // size
            for step, result in enumerate(results):
                result[part] = buffer.views[size][index + step]
        return results

    def write(
        self,
        instruction: Instruction,
        addresses: Array,
        lanes: Array | None,
        values: list[Array],
    ) -> None:
        """Write consecutive values (unsigned integers of one size) to each address.

        Raises:
            PtxFault: Out of bounds, misaligned, or an array that is not an Output.
        """
        size = values[0].dtype.itemsize
        total = size * len(values)
        for buffer, part, chosen in self._groups(instruction, addresses, lanes):
            offsets = self._offsets(instruction, buffer, addresses[part], chosen, total)
            order = self._writeable(instruction, buffer, chosen)
            order.on_write(instruction, offsets, chosen, total, f"argument {buffer.argument}")
            index = offsets // size
            for step, value in enumerate(values):
                buffer.views[size][index + step] = value[part]
            buffer.written.mark(offsets, total)
            buffer.stored.mark(offsets, total)
            self._count(buffer.trace.stores, addresses[part], chosen, total)

    def update(
        self,
        instruction: Instruction,
        addresses: Array,
        lanes: Array | None,
        change: Callable[[Array, int], None],
        kind: np.dtype[np.generic],
    ) -> None:
        """Apply `change(cell, position)` to the cell at each address in turn (atomics).

        `cell` is a one-element view of `kind` that `change` may overwrite. The order among
        threads is that of their numbers; a GPU promises no order.
        """
        size = kind.itemsize
        (before,) = self.read(instruction, addresses, lanes, size, 1)
        del before  # read only for its checks and counters
        for buffer, part, chosen in self._groups(instruction, addresses, lanes):
            self._writeable(instruction, buffer, chosen)
            offsets = addresses[part].astype(np.int64) - buffer.base
            positions = np.arange(addresses.size)[part]
            cells = buffer.data.view(kind)
            for position, index in zip(positions.tolist(), (offsets // size).tolist(), strict=True):
                change(cells[index : index + 1], position)
            buffer.stored.mark(offsets, size)
            self._count(buffer.trace.stores, addresses[part], chosen, size)

    def finish(self) -> dict[int, ArrayTrace]:
        """Copy outputs back and return the counters by argument position."""
        return {buffer.argument: buffer.finish() for buffer in self.buffers}

    def _groups(
        self, instruction: Instruction, addresses: Array, lanes: Array | None
    ) -> Iterator[tuple[_Buffer, slice | Array, Array | None]]:
        """Split an access by array; nearly always there is just one."""
        spans = addresses >> np.uint64(_SPAN_BITS)
        first = spans[0]
        if (spans == first).all():
            yield self._buffer(instruction, int(first), lanes, 0), slice(None), lanes
            return
        for span in np.unique(spans).tolist():
            part = np.flatnonzero(spans == span)
            chosen = part if lanes is None else lanes[part]
            yield self._buffer(instruction, span, chosen, 0), part, chosen

    def _buffer(
        self, instruction: Instruction, span: int, lanes: Array | None, position: int
    ) -> _Buffer:
        if not 1 <= span <= len(self.buffers):
            lane = position if lanes is None else int(lanes[position])
            raise self.lanes.fault(instruction, "an address outside every argument", lane)
        return self.buffers[span - 1]

    def _offsets(
        self,
        instruction: Instruction,
        buffer: _Buffer,
        addresses: Array,
        lanes: Array | None,
        size: int,
    ) -> Array:
        offsets = (addresses - np.uint64(buffer.base)).view(np.int64)
        outside = offsets > buffer.size - size
        if outside.any():
            offset = int(offsets[np.argmax(outside)])
            reason = (
                f"{size} bytes at offset {offset} of argument {buffer.argument},"
                f" which has {buffer.size} bytes: out of bounds"
            )
            raise self._fault(instruction, reason, lanes, outside)
        misaligned = (offsets & (size - 1)) != 0
        if misaligned.any():
            offset = int(offsets[np.argmax(misaligned)])
            reason = f"{size} bytes at offset {offset} of argument {buffer.argument}: misaligned"
            raise self._fault(instruction, reason, lanes, misaligned)
        return offsets

    def _writeable(self, instruction: Instruction, buffer: _Buffer, lanes: Array | None) -> Order:
        if buffer.order is None:
            lane = 0 if lanes is None else int(lanes[0])
            reason = f"writes argument {buffer.argument}, which is an input"
            raise self.lanes.fault(instruction, reason, lane)
        return buffer.order

    def _fault(
        self, instruction: Instruction, reason: str, lanes: Array | None, wrong: Array
    ) -> Exception:
        position = int(np.argmax(wrong))
        lane = position if lanes is None else int(lanes[position])
        return self.lanes.fault(instruction, reason, lane)

    def _count(self, counters: Accesses, addresses: Array, lanes: Array | None, size: int) -> None:
        sectors = by_warp(addresses >> np.uint64(_SECTOR_BITS), lanes, self.lanes.count, _NOBODY)
        sectors = np.sort(sectors, axis=1)
        distinct = int(np.count_nonzero(sectors[:, 1:] != sectors[:, :-1])) + len(sectors)
        counters.sectors += distinct - int(np.count_nonzero(sectors[:, -1] == _NOBODY))
        counters.warp_instructions += int(np.count_nonzero(sectors[:, 0] != _NOBODY))
        counters.requested_bytes += addresses.size * size
        counters.by_width[size] += addresses.size
