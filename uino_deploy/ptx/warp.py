"""Instructions between the threads of a warp: shuffles, votes, reductions, synchronisation."""

from __future__ import annotations

import numpy as np

from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.handlers import Handler, State, unsupported
from uino_deploy.ptx.lanes import WARP
from uino_deploy.ptx.parser import Immediate, Instruction, Operand, Pair
from uino_deploy.ptx.registers import Action, assign

_EVERYONE = 0xFFFF_FFFF


def _check_members(
    machine: State, instruction: Instruction, members: Operand, where: Array | None
) -> Action:
    """Return a check that exactly the threads of a member mask arrive here."""
    mask = machine.registers.source(instruction, members, "b32")
    lanes = machine.lanes
    constant = isinstance(members, Immediate) and members.bits & _EVERYONE == _EVERYONE
    if constant and where is None:
        return lambda: None
    own = np.uint32(1) << (np.arange(lanes.count, dtype=np.uint32) % np.uint32(WARP))

    def check() -> None:
        here = np.ones(lanes.count, dtype=np.bool_) if where is None else where
        present = np.add.reduce(np.where(here, own, np.uint32(0)).reshape(-1, WARP), axis=1)
        wanted = np.broadcast_to(mask, lanes.count)
        wrong = here & (
            ((wanted & ~np.repeat(present, WARP).astype(np.uint32)) != 0) | ((wanted & own) == 0)
        )
        if wrong.any():
            reason = "a thread of the member mask does not arrive here"
            raise lanes.fault(instruction, reason, int(np.argmax(wrong)))

    return check


def _sources(mode: str, lane: Array, offset: Array, control: Array) -> tuple[Array, Array]:
    """Return the lane of its warp that each thread reads, and whether it is in range."""
    segment, clamp = (control >> 8) & 31, control & 31
    first = lane & segment
    last = first | (clamp & ~segment)
    offset = offset & 31
    if mode == "up":
        source = lane - offset
        inside = source >= last
    elif mode == "down":
        source = lane + offset
        inside = source <= last
    elif mode == "bfly":
        source = lane ^ offset
        inside = source <= last
    else:
        source = first | (offset & ~segment)
        inside = source <= last
    return np.where(inside, source, lane), inside


def shuffle(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `shfl.sync.{up,down,bfly,idx}.b32 d[|p], a, offset, control, members`."""
    words = instruction.modifiers
    if len(words) != 3 or words[0] != "sync" or words[2] != "b32":
        raise unsupported(instruction)
    mode = words[1]
    if mode not in ("up", "down", "bfly", "idx"):
        raise unsupported(instruction)
    result, value, offset, control, members = instruction.operands
    registers, lanes = machine.registers, machine.lanes
    check = _check_members(machine, instruction, members, where)
    destination = result.first if isinstance(result, Pair) else result
    target = registers.target(instruction, destination, "b32")
    valid = (
        registers.target(instruction, result.second, "pred") if isinstance(result, Pair) else None
    )
    row = registers.source(instruction, value, "b32")
    steps = registers.source(instruction, offset, "s32")
    limits = registers.source(instruction, control, "s32")
    everyone = np.arange(lanes.count, dtype=np.int32)
    warp_first, lane = everyone & ~31, everyone & 31
    fixed = isinstance(offset, Immediate) and isinstance(control, Immediate)
    known = _sources(mode, lane, steps, limits) if fixed else None

    def run() -> None:
        check()
        source, inside = known if known is not None else _sources(mode, lane, steps, limits)
        moved = row[(warp_first + source) % lanes.count] if row.size > 1 else row
        assign(lambda: moved, target, where)()
        if valid is not None:
            assign(lambda: inside, valid, where)()

    if known is not None and where is None and valid is None and row.size > 1:
        index = (warp_first + known[0]).astype(np.intp)

        def quick() -> None:
            target[...] = row[index]

        return quick
    return run


def vote(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `vote.sync.{any,all,uni}.pred d, p, members` and `vote.sync.ballot.b32`."""
    if len(instruction.modifiers) != 3 or instruction.modifiers[0] != "sync":
        raise unsupported(instruction)
    mode = instruction.modifiers[1]
    if mode not in ("any", "all", "uni", "ballot"):
        raise unsupported(instruction)
    registers, lanes = machine.registers, machine.lanes
    result, predicate, members = instruction.operands
    check = _check_members(machine, instruction, members, where)
    target = registers.target(instruction, result, "b32" if mode == "ballot" else "pred")
    row = registers.source(instruction, predicate, "pred")
    mask = registers.source(instruction, members, "b32")
    bit = np.uint32(1) << (np.arange(lanes.count, dtype=np.uint32) % np.uint32(WARP))

    def compute() -> Array:
        check()
        votes = np.add.reduce(
            np.where(np.broadcast_to(row, lanes.count), bit, np.uint32(0)).reshape(-1, WARP), axis=1
        )
        ballot = np.repeat(votes, WARP).astype(np.uint32) & mask
        if mode == "ballot":
            return ballot
        if mode == "any":
            return ballot != 0
        everybody = ballot == mask
        return everybody if mode == "all" else everybody | (ballot == 0)

    return assign(compute, target, where)


def active_mask(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `activemask.b32 d`: the threads of the warp that execute this."""
    target = machine.registers.target(instruction, instruction.operands[0], "b32")
    count = machine.lanes.count
    bit = np.uint32(1) << (np.arange(count, dtype=np.uint32) % np.uint32(WARP))

    def compute() -> Array:
        here = bit if where is None else np.where(where, bit, np.uint32(0))
        return np.repeat(np.add.reduce(here.reshape(-1, WARP), axis=1), WARP).astype(np.uint32)

    return assign(compute, target, where)


_REDUCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduce(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `redux.sync.op.type d, a, members`, with all threads of a warp as members."""
    if len(instruction.modifiers) != 3 or instruction.modifiers[0] != "sync":
        raise unsupported(instruction)
    _, operation, kind = instruction.modifiers
    members = instruction.operands[2]
    whole = isinstance(members, Immediate) and members.bits & _EVERYONE == _EVERYONE
    if operation not in _REDUCTIONS or kind not in ("u32", "s32", "b32") or not whole:
        raise unsupported(instruction)
    check = _check_members(machine, instruction, members, where)
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    row = machine.registers.source(instruction, instruction.operands[1], kind)
    function, count = _REDUCTIONS[operation], machine.lanes.count

    def compute() -> Array:
        check()
        values = np.broadcast_to(row, count).reshape(-1, WARP)
        return np.repeat(function.reduce(values, axis=1, dtype=row.dtype), WARP)

    return assign(compute, target, where)


def warp_barrier(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `bar.warp.sync members`: the warp's accesses become visible to its threads."""
    check = _check_members(machine, instruction, instruction.operands[0], where)

    def run() -> None:
        check()
        machine.lanes.warp_barrier(machine.lanes.selected(where))

    return run


WARP_WIDE: dict[str, Handler] = {
    "activemask": active_mask,
    "bar": warp_barrier,
    "redux": reduce,
    "shfl": shuffle,
    "vote": vote,
}
