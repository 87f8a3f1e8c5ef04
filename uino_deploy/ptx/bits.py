"""Instructions on bit fields, bytes and bit counts."""

from __future__ import annotations

import numpy as np

from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.handlers import Handler, State, kind_of, unsupported
from uino_deploy.ptx.parser import Immediate, Instruction, width_of
from uino_deploy.ptx.registers import Action, assign, dtype_of


def extract_field(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `bfe`: `length` bits from bit `start`, zero- or sign-extended."""
    kind, _ = kind_of(instruction, set())
    width = 8 * width_of(kind)
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    value = machine.registers.source(instruction, instruction.operands[1], kind)
    start, length = (
        machine.registers.source(instruction, o, "u32") for o in instruction.operands[2:]
    )

    def compute() -> Array:
        first = (start & np.uint32(0xFF)).astype(np.int64)
        count = (length & np.uint32(0xFF)).astype(np.int64)
        # Python-like arithmetic on signed 64-bit: shift out the bits above, then those below.
        signed = value.dtype.kind == "i"
        if width == 64 or not signed:
            bits = value.astype(np.uint64) >> np.minimum(first, 63).astype(np.uint64)
            bits = np.where(first > 63, np.uint64(0), bits)
            keep = np.where(count >= 64, np.int64(-1), (np.int64(1) << np.minimum(count, 63)) - 1)
            field = bits & keep.astype(np.uint64)
            if not signed:
                return field.astype(target.dtype)
            raise unsupported(instruction)
        last = np.minimum(first + count, width)
        extended = value.astype(np.int64)
        shifted = (extended << (64 - last)) >> np.minimum(64 - last + first, 63)
        beyond = np.where(extended < 0, np.int64(-1), np.int64(0))
        field = np.where(first >= width, beyond, shifted)
        return np.where(count == 0, np.int64(0), field).astype(target.dtype)

    if kind == "s64":
        raise unsupported(instruction)
    return assign(compute, target, where)


def insert_field(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `bfi.b32 d, a, b, start, length`: the low bits of a replace a field of b."""
    kind, _ = kind_of(instruction, set())
    if kind != "b32":
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    a, b, start, length = (
        machine.registers.source(instruction, o, "u32") for o in instruction.operands[1:]
    )

    def compute() -> Array:
        first = np.minimum(start & np.uint32(0xFF), np.uint32(32)).astype(np.uint64)
        count = np.minimum(length & np.uint32(0xFF), np.uint32(32)).astype(np.uint64)
        mask = ((np.uint64(1) << count) - np.uint64(1)) << first
        return ((b & ~mask) | ((a.astype(np.uint64) << first) & mask)).astype(np.uint32)

    return assign(compute, target, where)


def permute_bytes(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `prmt.b32 d, a, b, selector`: four of the eight bytes of {b, a}, or their signs."""
    if instruction.modifiers != ("b32",):
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "b32")
    a, b, selector = (
        machine.registers.source(instruction, o, "b32") for o in instruction.operands[1:]
    )

    def compute() -> Array:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.zeros(target.shape, dtype=np.uint32)
        for position in range(4):
            chosen = (selector >> np.uint32(4 * position)) & np.uint32(0xF)
            shift = (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = ((both >> shift) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            byte = np.where(chosen & np.uint32(8), sign, byte)
            result |= byte << np.uint32(8 * position)
        return result

    return assign(compute, target, where)


def lookup(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `lop3.b32 d, a, b, c, table`: any function of three bits, by its table."""
    table = instruction.operands[-1]
    if instruction.modifiers != ("b32",) or not isinstance(table, Immediate):
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "b32")
    sources = [machine.registers.source(instruction, o, "b32") for o in instruction.operands[1:4]]

    def compute() -> Array:
        result = np.zeros(target.shape, dtype=np.uint32)
        for row in range(8):
            if table.bits >> row & 1:
                term = np.full(target.shape, 0xFFFF_FFFF, dtype=np.uint32)
                for position, source in enumerate(sources):
                    term &= source if row >> (2 - position) & 1 else ~source
                result |= term
        return result

    return assign(compute, target, where)


def funnel_shift(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `shf.{l,r}.{wrap,clamp}.b32 d, low, high, amount`."""
    if len(instruction.modifiers) != 3 or instruction.modifiers[2] != "b32":
        raise unsupported(instruction)
    direction, mode, _ = instruction.modifiers
    if direction not in ("l", "r") or mode not in ("wrap", "clamp"):
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "b32")
    low, high, amount = (
        machine.registers.source(instruction, o, "b32") for o in instruction.operands[1:]
    )

    def compute() -> Array:
        count = amount & np.uint32(31) if mode == "wrap" else np.minimum(amount, np.uint32(32))
        both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        wide = count.astype(np.uint64)
        if direction == "l":
            return ((both << wide) >> np.uint64(32)).astype(np.uint32)
        return (both >> wide).astype(np.uint32)

    return assign(compute, target, where)


def count_bits(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `popc` and `clz`: bits set, and zeros above the highest bit set."""
    kind, _ = kind_of(instruction, set())
    target = machine.registers.target(instruction, instruction.operands[0], "u32")
    value = machine.registers.source(instruction, instruction.operands[1], kind)
    width, leading = 8 * width_of(kind), instruction.opcode == "clz"

    def compute() -> Array:
        bits = (value[:, None] >> np.arange(width, dtype=dtype_of(kind))) & value.dtype.type(1)
        if not leading:
            return bits.sum(axis=1).astype(np.uint32)
        highest = np.where(bits.any(axis=1), width - 1 - np.argmax(bits[:, ::-1], axis=1), -1)
        return (width - 1 - highest).astype(np.uint32)

    return assign(compute, target, where)


def reverse(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `brev.b32`: the bits in reverse order."""
    if instruction.modifiers != ("b32",):
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "b32")
    value = machine.registers.source(instruction, instruction.operands[1], "b32")

    def compute() -> Array:
        result = np.zeros(value.shape, dtype=np.uint32)
        for bit in range(32):
            result |= ((value >> np.uint32(bit)) & np.uint32(1)) << np.uint32(31 - bit)
        return result

    return assign(compute, target, where)


BITS: dict[str, Handler] = {
    "bfe": extract_field,
    "bfi": insert_field,
    "brev": reverse,
    "clz": count_bits,
    "lop3": lookup,
    "popc": count_bits,
    "prmt": permute_bytes,
    "shf": funnel_shift,
}
