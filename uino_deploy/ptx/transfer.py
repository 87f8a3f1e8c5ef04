"""Loads, stores, asynchronous copies and atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.handlers import Handler, State, unsupported
from uino_deploy.ptx.memory import UNSIGNED
from uino_deploy.ptx.parser import (
    Address,
    Immediate,
    Instruction,
    Operand,
    Register,
    Symbol,
    Vector,
    width_of,
)
from uino_deploy.ptx.registers import Action, assign, dtype_of, parameter_addresses

# Every access happens here, in program order, which satisfies volatile.
_CACHE = frozenset({"ca", "cg", "cs", "cv", "lu", "nc", "wb", "wt", "weak", "volatile", "L1", "L2"})
_SPACES = frozenset({"global", "shared", "shared::cta", "param"})


def _shape(instruction: Instruction) -> tuple[str, str, int]:
    """Return (space, type, count) of a load or store; cache hints have no effect here."""
    space, kind, count = "", "", 1
    for modifier in instruction.modifiers:
        if modifier in _SPACES:
            space = modifier.removesuffix("::cta")
        elif modifier in ("v2", "v4", "v8"):
            count = int(modifier[1:])
        elif modifier.split("::")[0] not in _CACHE:
            try:
                width_of(modifier)
            except KeyError:
                raise unsupported(instruction, f"modifier .{modifier}") from None
            kind = modifier
    if not space or not kind or kind == "pred" or kind.endswith("x2"):
        raise unsupported(instruction)
    return space, kind, count


def access_width(instruction: Instruction) -> int | None:
    """Return the size of one thread's shared-memory access in bytes; None if it makes none."""
    if instruction.opcode in ("ldmatrix", "stmatrix"):
        return 16
    if instruction.opcode == "cp" and len(instruction.operands) > 2:
        size = instruction.operands[2]
        return size.bits if isinstance(size, Immediate) else None
    if instruction.opcode in ("ld", "st"):
        space, kind, count = _shape(instruction)
        return width_of(kind) * count if space == "shared" else None
    return None


def address_of(machine: State, instruction: Instruction, operand: Operand) -> Callable[..., Array]:
    """Return a reader of an address operand for the given lanes (None: all)."""
    if not isinstance(operand, Address):
        raise unsupported(instruction)
    if isinstance(operand.base, Register):
        row = machine.registers.row(operand.base)
        offset = row.dtype.type(operand.offset & ((1 << (8 * row.dtype.itemsize)) - 1))

        def indirect(lanes: Array | None) -> Array:
            chosen = row if lanes is None else row[lanes]
            return chosen + offset if operand.offset else chosen

        return indirect
    fixed = operand.offset
    if isinstance(operand.base, Symbol):
        if operand.base.name not in machine.registers.program.shared:
            raise unsupported(instruction, f"address of {operand.base.name}")
        fixed += machine.registers.program.shared[operand.base.name]
    everyone = np.full(machine.lanes.count, fixed, dtype=np.uint32)
    return lambda lanes: everyone if lanes is None else everyone[lanes]


def vector_of(operand: Operand, count: int, instruction: Instruction) -> list[Operand | None]:
    """Return the registers of a (possibly one-element) vector operand."""
    items: list[Operand | None] = list(operand.items) if isinstance(operand, Vector) else [operand]
    if len(items) != count:
        raise unsupported(instruction)
    return items


def load(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `ld` from parameters, global or shared memory."""
    space, kind, count = _shape(instruction)
    items = vector_of(instruction.operands[0], count, instruction)
    if space == "param":
        return _load_parameter(machine, instruction, where, kind, items)
    size, address = width_of(kind), address_of(machine, instruction, instruction.operands[1])
    memory, lanes = (machine.shared if space == "shared" else machine.memory), machine.lanes
    stores = [_receiver(machine, instruction, item, kind) for item in items]

    def run() -> None:
        chosen = lanes.selected(where)
        if chosen is not None and not chosen.size:
            return
        values = memory.read(instruction, address(chosen), chosen, size, count)
        for store, value in zip(stores, values, strict=True):
            store(value, chosen)

    return run


def _receiver(
    machine: State, instruction: Instruction, item: Operand | None, kind: str
) -> Callable[[Array, Array | None], None]:
    """Return a function that puts loaded bits into a register, extended if it is wider."""
    if item is None:
        return lambda value, lanes: None
    if not isinstance(item, Register) or item.width < width_of(kind):
        raise unsupported(instruction)
    row, signed = machine.registers.row(item), kind.startswith("s")
    narrow = dtype_of(kind) if kind[0] in "us" else None

    def receive(value: Array, lanes: Array | None) -> None:
        if signed and narrow is not None:
            value = value.view(narrow).astype(np.int64).astype(row.dtype)
        row[slice(None) if lanes is None else lanes] = value

    return receive


def _load_parameter(
    machine: State,
    instruction: Instruction,
    where: Array | None,
    kind: str,
    items: list[Operand | None],
) -> Action:
    operand = instruction.operands[1]
    if isinstance(operand, Address) and isinstance(operand.base, Register):
        return _load_parameter_from(machine, instruction, where, kind, items)
    if not isinstance(operand, Address) or not isinstance(operand.base, Symbol):
        raise unsupported(instruction)
    raw = machine.parameters.get(operand.base.name)
    if raw is None:
        raise unsupported(instruction, f"parameter {operand.base.name}")
    size = width_of(kind)
    actions = []
    for step, item in enumerate(items):
        start = operand.offset + step * size
        bits = raw[start : start + size]
        if len(bits) != size or not isinstance(item, Register):
            raise unsupported(instruction)
        constant = np.frombuffer(bits, dtype=UNSIGNED[size]).copy()
        receive = _receiver(machine, instruction, item, kind)
        actions.append(_fill(machine, receive, constant, where))

    def run() -> None:
        for action in actions:
            action()

    return run


def _load_parameter_from(
    machine: State,
    instruction: Instruction,
    where: Array | None,
    kind: str,
    items: list[Operand | None],
) -> Action:
    """Load from an address computed from `mov %rd, parameter`."""
    addresses, end = parameter_addresses(machine.program)
    space = np.zeros(end, dtype=np.uint8)
    inside = np.zeros(end, dtype=np.bool_)
    for name, raw in machine.parameters.items():
        start = addresses[name]
        space[start : start + len(raw)] = np.frombuffer(raw, dtype=np.uint8)
        inside[start : start + len(raw)] = True
    size, lanes = width_of(kind), machine.lanes
    whole = size * len(items)
    address = address_of(machine, instruction, instruction.operands[1])
    stores = [_receiver(machine, instruction, item, kind) for item in items]
    values = space.view(UNSIGNED[size])

    def run() -> None:
        chosen = lanes.selected(where)
        if chosen is not None and not chosen.size:
            return
        first = address(chosen).astype(np.int64)
        bounded = np.clip(first, 0, end - whole)
        wrong = (first != bounded) | (first % whole != 0)
        wrong |= ~inside[bounded[:, None] + np.arange(whole)].all(axis=1)
        if wrong.any():
            position = int(np.argmax(wrong))
            lane = position if chosen is None else int(chosen[position])
            raise lanes.fault(instruction, "outside every parameter, or misaligned", lane)
        for step, store in enumerate(stores):
            store(values[first // size + step], chosen)

    return run


def _fill(
    machine: State,
    receive: Callable[[Array, Array | None], None],
    constant: Array,
    where: Array | None,
) -> Action:
    return lambda: receive(constant, machine.lanes.selected(where))


def sender(
    machine: State, instruction: Instruction, item: Operand | None, kind: str
) -> Callable[[Array | None], Array]:
    """Return a reader of the bits to store, truncated if the register is wider than the type."""
    size, count = width_of(kind), machine.lanes.count
    if isinstance(item, Register) and item.width > size:
        row = machine.registers.row(item)
        return lambda lanes: (row if lanes is None else row[lanes]).astype(UNSIGNED[size])
    if item is None:
        raise unsupported(instruction)
    view = machine.registers.source(instruction, item, f"u{8 * size}")
    if view.size == 1:
        view = np.full(count, view[0])
    return lambda lanes: view if lanes is None else view[lanes]


def store(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `st` to global or shared memory."""
    space, kind, count = _shape(instruction)
    if space == "param":
        raise unsupported(instruction)
    items = vector_of(instruction.operands[1], count, instruction)
    address = address_of(machine, instruction, instruction.operands[0])
    memory, lanes = (machine.shared if space == "shared" else machine.memory), machine.lanes
    senders = [sender(machine, instruction, item, kind) for item in items]

    def run() -> None:
        chosen = lanes.selected(where)
        if chosen is not None and not chosen.size:
            return
        values = [send(chosen) for send in senders]
        memory.write(instruction, address(chosen), chosen, values)

    return run


def copy_async(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `cp.async`, its groups and its waits."""
    words = instruction.modifiers
    lanes, shared = machine.lanes, machine.shared
    if words[:1] != ("async",):
        raise unsupported(instruction)
    if words[1:] == ("commit_group",):
        return lambda: shared.commit(lanes.selected(where))
    if words[1:] == ("wait_all",):
        return lambda: shared.wait(lanes.selected(where), None)
    if words[1:] == ("wait_group",):
        allowed = instruction.operands[0]
        if not isinstance(allowed, Immediate):
            raise unsupported(instruction)
        return lambda: shared.wait(lanes.selected(where), allowed.bits)
    rest = [m for m in words[1:] if not m.startswith("L2::")]
    if rest not in (["ca", "shared", "global"], ["cg", "shared", "global"]):
        raise unsupported(instruction)
    return _copy(machine, instruction, where)


def _copy(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `cp.async [shared], [global], size{, source size}`: bytes past the source are zeros."""
    to, of, width, *more = instruction.operands
    if not isinstance(width, Immediate) or width.bits not in (4, 8, 16):
        raise unsupported(instruction)
    hinted = any(m == "L2::cache_hint" for m in instruction.modifiers)
    more = more[: len(more) - hinted]
    target, source = address_of(machine, instruction, to), address_of(machine, instruction, of)
    filled = machine.registers.source(instruction, more[0], "u32") if more else None
    lanes, count = machine.lanes, width.bits // 4

    def run() -> None:
        chosen = lanes.selected(where)
        if chosen is not None and not chosen.size:
            return
        everyone = np.arange(lanes.count) if chosen is None else chosen
        values = [np.zeros(everyone.size, dtype=np.uint32) for _ in range(count)]
        sizes = np.broadcast_to(width.bits if filled is None else filled, lanes.count)[everyone]
        partial = (sizes != 0) & (sizes != width.bits)
        if partial.any():
            raise unsupported(instruction, "a source size other than 0 or the whole")
        reading = np.flatnonzero(sizes)
        if reading.size:
            part = everyone[reading]
            every = reading.size == lanes.count
            found = machine.memory.read(
                instruction, source(None if every else part), None if every else part, 4, count
            )
            for value, bits in zip(values, found, strict=True):
                value[reading] = bits
        machine.shared.copy(instruction, target(chosen), chosen, values)

    return run


def _atomic_function(operation: str, kind: str) -> Callable[[Array, Array], Array]:
    functions: dict[str, Callable[[Array, Array], Array]] = {
        "add": np.add,
        "min": np.fmin if kind[0] == "f" else np.minimum,
        "max": np.fmax if kind[0] == "f" else np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "exch": lambda old, new: new,
    }
    return functions[operation]


_ORDERS = frozenset({"relaxed", "acquire", "release", "acq_rel", "gpu", "cta", "sys", "global"})


def atomic(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `atom` and `red` on global memory, one thread after the other."""
    rest = [m for m in instruction.modifiers if m not in _ORDERS]
    if "global" not in instruction.modifiers or len(rest) != 2 or rest[1] not in (
        "u32", "s32", "b32", "u64", "b64", "f32", "f64",
    ):  # fmt: skip
        raise unsupported(instruction)
    operation, kind = rest
    try:
        function = _atomic_function(operation, kind)
    except KeyError:
        raise unsupported(instruction) from None
    returns = instruction.opcode == "atom"
    address = address_of(machine, instruction, instruction.operands[1 if returns else 0])
    dtype, lanes = dtype_of(kind), machine.lanes
    send = sender(machine, instruction, instruction.operands[2 if returns else 1], kind)
    result = (
        machine.registers.target(instruction, instruction.operands[0], kind) if returns else None
    )

    def run() -> None:
        chosen = lanes.selected(where)
        if chosen is not None and not chosen.size:
            return
        values = np.ascontiguousarray(send(chosen)).view(dtype)
        before = np.empty_like(values)

        def change(cell: Array, position: int) -> None:
            before[position] = cell[0]
            cell[0] = function(cell, values[position : position + 1])[0]

        machine.memory.update(instruction, address(chosen), chosen, change, dtype)
        if result is not None:
            result[slice(None) if chosen is None else chosen] = before

    return run


def nothing(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind a fence or prefetch, which has no effect here: blocks run in order."""
    return lambda: None


def cache_policy(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `createpolicy`, a cache hint: any value serves."""
    target = machine.registers.target(instruction, instruction.operands[0], "b64")
    zero = np.zeros(1, dtype=np.uint64)
    return assign(lambda: zero, target, where)


TRANSFERS: dict[str, Handler] = {
    "atom": atomic,
    "cp": copy_async,
    "createpolicy": cache_policy,
    "fence": nothing,
    "ld": load,
    "membar": nothing,
    "prefetch": nothing,
    "red": atomic,
    "st": store,
}
