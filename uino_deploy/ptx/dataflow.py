"""Control flow of a program, and the registers that may be read before they are written.

A register that is written on every path to each of its reads needs no check at run time; only the
others are watched, thread by thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uino_deploy.ptx.errors import UnsupportedPtx
from uino_deploy.ptx.parser import (
    Address,
    Immediate,
    Instruction,
    Operand,
    Pair,
    Program,
    Register,
    Symbol,
    Vector,
)

_NO_RESULT = frozenset(
    {"st", "bra", "ret", "exit", "bar", "barrier", "cp", "red", "stmatrix", "membar", "fence"}
    | {"prefetch", "trap"}
)
_ADDS_TO_RESULT = frozenset({"wgmma"})
_ENDS_BLOCK = frozenset({"bra", "ret", "exit"})


@dataclass(frozen=True)
class BasicBlock:
    """Instructions `start` to `stop`; `last` ends the block if it branches, waits or returns.

    `target` is the block a branch goes to; the number of blocks means the end of the program.
    """

    start: int
    stop: int
    last: Instruction | None
    target: int


def is_barrier(instruction: Instruction) -> bool:
    """Return whether all threads of the block wait here for each other."""
    return instruction.opcode in ("bar", "barrier") and instruction.modifiers[:1] != ("warp",)


def reads(instruction: Instruction) -> Iterator[Register]:
    """Yield the registers an instruction reads."""
    if instruction.guard is not None:
        yield instruction.guard
    for position, operand in enumerate(instruction.operands):
        if isinstance(operand, Address):
            if isinstance(operand.base, Register):
                yield operand.base
        elif position > 0 or instruction.opcode in _NO_RESULT or _accumulates(instruction):
            yield from _registers(operand)


def _accumulates(instruction: Instruction) -> bool:
    """Return whether the result's registers are read: by a product whose scale-d is not zero."""
    if instruction.opcode not in _ADDS_TO_RESULT or len(instruction.operands) < 4:
        return False
    return instruction.operands[3] != Immediate(0)


def writes(instruction: Instruction) -> Iterator[Register]:
    """Yield the registers an instruction writes."""
    if instruction.operands and instruction.opcode not in _NO_RESULT:
        yield from _registers(instruction.operands[0])


def _registers(operand: Operand) -> Iterator[Register]:
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Vector):
        yield from (item for item in operand.items if isinstance(item, Register))
    elif isinstance(operand, Pair):
        yield from (operand.first, operand.second)


def basic_blocks(program: Program) -> list[BasicBlock]:
    """Split a program where control may enter or leave; return the blocks in program order.

    Raises:
        UnsupportedPtx: A branch's target is not a label of the program.
    """
    instructions = program.instructions
    starts = {0, *program.labels.values()}
    for position, instruction in enumerate(instructions):
        if instruction.opcode in _ENDS_BLOCK or is_barrier(instruction):
            starts.add(position + 1)
    ordered = sorted(start for start in starts if start < len(instructions))
    index_of = {start: index for index, start in enumerate(ordered)}
    blocks = []
    for start, stop in zip(ordered, [*ordered[1:], len(instructions)], strict=True):
        last = instructions[stop - 1]
        if last.opcode in _ENDS_BLOCK or is_barrier(last):
            target = len(ordered)
            if last.opcode == "bra":
                target = index_of.get(_target(program, last), len(ordered))
            blocks.append(BasicBlock(start, stop - 1, last, target))
        else:
            blocks.append(BasicBlock(start, stop, None, len(ordered)))
    return blocks


def _target(program: Program, branch: Instruction) -> int:
    operand = branch.operands[0]
    if not isinstance(operand, Symbol) or operand.name not in program.labels:
        raise UnsupportedPtx("a branch to an unknown label", branch.line, branch.text)
    return program.labels[operand.name]


def maybe_unwritten(program: Program, blocks: list[BasicBlock]) -> frozenset[str]:
    """Return the registers that some path reads before (or without) writing them."""
    bit = {name: 1 << index for index, name in enumerate(program.registers)}
    everything = (1 << len(bit)) - 1
    made = [_made(program, block, bit) for block in blocks]
    before = [everything] * len(blocks)
    before[0] = 0
    pending = list(range(len(blocks)))
    while pending:
        index = pending.pop(0)
        after = before[index] | made[index]
        for successor in successors(blocks, index):
            reduced = before[successor] & after
            if reduced != before[successor]:
                before[successor] = reduced
                if successor not in pending:
                    pending.append(successor)
    unwritten: set[str] = set()
    for index, block in enumerate(blocks):
        known = before[index]
        for instruction in _all(program, block):
            unwritten.update(r.name for r in reads(instruction) if not known & bit[r.name])
            if instruction.guard is None:
                for register in writes(instruction):
                    known |= bit[register.name]
    return frozenset(unwritten)


def successors(blocks: list[BasicBlock], index: int) -> list[int]:
    """Return the blocks that may follow block `index`."""
    block, following = blocks[index], index + 1
    if block.last is None or is_barrier(block.last):
        reached = [following]
    elif block.last.guard is None:
        reached = [block.target]
    else:
        reached = [block.target, following]
    return [block for block in reached if block < len(blocks)]


def _all(program: Program, block: BasicBlock) -> list[Instruction]:
    inside = program.instructions[block.start : block.stop]
    return inside if block.last is None else [*inside, block.last]


def _made(program: Program, block: BasicBlock, bit: dict[str, int]) -> int:
    made = 0
    for instruction in _all(program, block):
        if instruction.guard is None:
            for register in writes(instruction):
                made |= bit[register.name]
    return made
