"""A machine that runs blocks side by side, smallest program counter first, with barriers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from uino_deploy.ptx.arguments import bind, flat
from uino_deploy.ptx.arithmetic import ELEMENTWISE
from uino_deploy.ptx.bits import BITS
from uino_deploy.ptx.conversion import CONVERSIONS
from uino_deploy.ptx.dataflow import (
    BasicBlock,
    basic_blocks,
    is_barrier,
    maybe_unwritten,
    reads,
    writes,
)
from uino_deploy.ptx.errors import PtxError
from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.handlers import Handler, unsupported
from uino_deploy.ptx.lanes import WARP, Lanes
from uino_deploy.ptx.matrix import MATRICES
from uino_deploy.ptx.memory import GlobalMemory, Output
from uino_deploy.ptx.parser import Immediate, Instruction, Program, Register
from uino_deploy.ptx.registers import Action, Registers
from uino_deploy.ptx.shared import SharedMemory
from uino_deploy.ptx.transfer import TRANSFERS, access_width
from uino_deploy.ptx.warp import WARP_WIDE
from uino_deploy.ptx.warpgroup import WARPGROUPS

_HANDLERS: dict[str, Handler] = {
    **ELEMENTWISE,
    **BITS,
    **CONVERSIONS,
    **MATRICES,
    **TRANSFERS,
    **WARP_WIDE,
    **WARPGROUPS,
}
_AXES = "xyz"


class Machine:
    """A program bound to its arguments, and to `slots` blocks that run side by side."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        arguments: Sequence[object],
        slots: int,
    ) -> None:
        self.program, self.grid = program, grid
        self.lanes = Lanes(threads, slots)
        self.memory = GlobalMemory(
            {i: a for i, a in enumerate(flat(arguments)) if isinstance(a, np.ndarray | Output)},
            self.lanes,
        )
        self.parameters = bind(program, arguments, self.memory)
        widths = [w for i in program.instructions if (w := access_width(i)) is not None]
        self.shared = SharedMemory(program.static_shared + shared, min([16, *widths]), self.lanes)
        self.registers = Registers(program, self.lanes)
        self._special()
        self.blocks = basic_blocks(program)
        self.end = len(self.blocks)
        self.registers.watch(maybe_unwritten(program, self.blocks))
        self.executed = np.zeros(self.end, dtype=np.int64)
        self._guard = np.empty(self.lanes.count, dtype=np.bool_)
        self._together: list[list[Action]] = [self._actions(block, None) for block in self.blocks]
        self._apart: list[list[Action] | None] = [None] * self.end
        self._steps = 0

    def run(self, blocks: Array, limit: int) -> None:
        """Run the blocks with these linear indices, no more than there are slots."""
        lanes = self.lanes
        lanes.blocks[: blocks.size] = blocks
        for axis, index in zip(
            _AXES, np.unravel_index(lanes.blocks, self.grid[::-1])[::-1], strict=True
        ):
            self.registers.special[f"%ctaid.{axis}"][:] = np.repeat(index, lanes.threads)
        self.registers.reset()
        self.lanes.start()
        self.shared.reset()
        self._steps = limit
        if blocks.size == lanes.slots:
            self._run_together(0)
        else:
            position = np.full(lanes.count, self.end, dtype=np.int64)
            position[: blocks.size * lanes.threads] = 0
            self._run_apart(position)

    def instructions(self) -> Counter[str]:
        """Count executed warp instructions by mnemonic."""
        counts: Counter[str] = Counter()
        for block, executed in zip(self.blocks, self.executed.tolist(), strict=True):
            if executed:
                inside = self.program.instructions[block.start : block.stop]
                for instruction in [*inside, block.last]:
                    if instruction is not None:
                        counts[instruction.name] += executed
        return counts

    def _special(self) -> None:
        """Give the special registers their values; %ctaid changes with each batch."""
        lanes = self.lanes
        thread = np.tile(np.arange(lanes.threads, dtype=np.uint32), lanes.slots)
        values = {"%tid.x": thread, "%laneid": thread % np.uint32(WARP)}
        values["%warpid"] = thread // np.uint32(WARP)
        for name, size in (("tid.y", 0), ("tid.z", 0), ("ntid.x", lanes.threads), ("ntid.y", 1),
                           ("ntid.z", 1)):  # fmt: skip
            values[f"%{name}"] = np.full(lanes.count, size, dtype=np.uint32)
        for axis, size in zip(_AXES, self.grid, strict=True):
            values[f"%nctaid.{axis}"] = np.full(lanes.count, size, dtype=np.uint32)
            values[f"%ctaid.{axis}"] = np.zeros(lanes.count, dtype=np.uint32)
        self.registers.special = values

    def _actions(self, block: BasicBlock, where: Array | None) -> list[Action]:
        return [
            self._action(instruction, where)
            for instruction in self.program.instructions[block.start : block.stop]
        ]

    def _action(self, instruction: Instruction, where: Array | None) -> Action:
        """Bind one instruction to the rows it works on, for all lanes or those in `where`."""
        if instruction.opcode == "trap":
            return self._chain([self._trap(instruction)], instruction, where)
        handler = _HANDLERS.get(instruction.opcode)
        if handler is None:
            raise unsupported(instruction)
        inner = where if instruction.guard is None else self._guard
        try:
            action = handler(self, instruction, inner)
        except (ValueError, IndexError, KeyError) as error:
            raise unsupported(instruction, "operands") from error
        steps = [*self._checks(instruction, inner), action, *self._marks(instruction, inner)]
        return self._chain(steps, instruction, where)

    def _chain(self, steps: list[Action], instruction: Instruction, where: Array | None) -> Action:
        if instruction.guard is not None:
            steps = [
                *self._watched([instruction.guard], instruction, where),
                self._guarding(instruction, where),
                *steps,
            ]
        if len(steps) == 1:
            return steps[0]

        def run() -> None:
            for step in steps:
                step()

        return run

    def _guarding(self, instruction: Instruction, where: Array | None) -> Action:
        """Return a function that computes the lanes that pass an instruction's predicate."""
        guard = instruction.guard
        row = self.registers.row(guard) if guard is not None else self._guard
        if instruction.negated:
            if where is None:
                return partial(np.logical_not, row, self._guard)
            return partial(np.greater, where, row, self._guard)
        if where is None:
            return partial(np.copyto, self._guard, row)
        return partial(np.logical_and, where, row, self._guard)

    def _trap(self, instruction: Instruction) -> Action:
        def run() -> None:
            raise self.lanes.fault(instruction, "trap", 0)

        return run

    def _checks(self, instruction: Instruction, where: Array | None) -> list[Action]:
        registers = [r for r in reads(instruction) if r is not instruction.guard]
        return self._watched(registers, instruction, where)

    def _watched(
        self, registers: Iterable[Register], instruction: Instruction, where: Array | None
    ) -> list[Action]:
        """Return checks that lanes have written the registers that need watching."""

        def check(name: str, defined: Array) -> None:
            missing = ~defined if where is None else where & ~defined
            if missing.any():
                reason = f"reads {name}, which was never written"
                raise self.lanes.fault(instruction, reason, int(np.argmax(missing)))

        defined = self.registers.defined
        return [partial(check, r.name, defined[r.name]) for r in registers if r.name in defined]

    def _marks(self, instruction: Instruction, where: Array | None) -> list[Action]:
        def mark(defined: Array) -> None:
            defined[... if where is None else where] = True

        marks = self.registers.defined
        return [partial(mark, marks[r.name]) for r in writes(instruction) if r.name in marks]

    def _tick(self, block: BasicBlock) -> None:
        self._steps -= 1
        if self._steps < 0:
            line = self.program.instructions[block.start - (block.start == block.stop)].line
            raise PtxError(f"PTX line {line}: still running after the limit of basic blocks")

    def _run_together(self, index: int) -> None:
        """Run while all lanes are at one place; when they diverge, continue them separately."""
        while index < self.end:
            block = self.blocks[index]
            self._tick(block)
            self.executed[index] += self.lanes.warps
            for action in self._together[index]:
                action()
            last = block.last
            if last is None or is_barrier(last):
                if last is not None:
                    self._check_barrier(last)
                    self.lanes.barrier(None)
                index += 1
                continue
            if last.guard is None:
                index = block.target
                continue
            taken = self._taken(last, None)
            if taken.all():
                index = block.target
            elif not taken.any():
                index += 1
            else:
                self._run_apart(np.where(taken, block.target, index + 1))
                return

    def _taken(self, branch: Instruction, where: Array | None) -> Array:
        """Return the lanes (of `where`) that take a branch or return."""
        everyone = np.ones(self.lanes.count, dtype=np.bool_) if where is None else where
        if branch.guard is None:
            return everyone
        for check in self._watched([branch.guard], branch, where):
            check()
        row = self.registers.row(branch.guard)
        return everyone & (~row if branch.negated else row)

    def _run_apart(self, position: Array) -> None:
        """Run lanes at different places, smallest place first, until they converge."""
        waiting = np.zeros(self.lanes.count, dtype=np.bool_)
        active = self.lanes.active
        while True:
            candidates = np.where(waiting, self.end, position)
            index = int(candidates.min())
            if index >= self.end:
                return
            np.equal(candidates, index, active)
            if active.all():
                self._run_together(index)
                return
            block = self.blocks[index]
            self._tick(block)
            self.executed[index] += np.count_nonzero(active.reshape(-1, WARP).any(axis=1))
            actions = self._apart[index]
            if actions is None:
                actions = self._apart[index] = self._actions(block, active)
            for action in actions:
                action()
            position[active] = index + 1
            last = block.last
            if last is not None and is_barrier(last):
                self._check_barrier(last)
                self._check_warps(last, position, active)
                waiting |= active
                self._release(position, waiting)
            elif last is not None:
                position[self._taken(last, active)] = block.target
                if block.target == self.end and waiting.any():
                    self._release(position, waiting)

    def _check_barrier(self, barrier: Instruction) -> None:
        number, *count = barrier.operands
        whole = all(isinstance(c, Immediate) and c.bits == self.lanes.threads for c in count)
        plain = barrier.modifiers in (("sync",), ("sync", "aligned"), ("cta", "sync", "aligned"))
        if not plain or number != Immediate(0) or not whole:
            raise unsupported(barrier, "this form")

    def _check_warps(self, barrier: Instruction, position: Array, active: Array) -> None:
        """Require that a warp's remaining threads reach a barrier together."""
        missing = ~active & (position < self.end)
        arriving = np.repeat(active.reshape(-1, WARP).any(axis=1), WARP)
        if (missing & arriving).any():
            lane = int(np.argmax(missing & arriving))
            raise self.lanes.fault(barrier, "a warp's threads do not all arrive here", lane)

    def _release(self, position: Array, waiting: Array) -> None:
        """Release the blocks whose threads all wait or have returned."""
        shape = (-1, self.lanes.threads)
        arrived = (waiting | (position >= self.end)).reshape(shape).all(axis=1)
        released = np.repeat(arrived, self.lanes.threads) & waiting
        if released.any():
            self.lanes.barrier(np.flatnonzero(np.repeat(arrived, self.lanes.threads)))
            waiting &= ~released
