"""Tensor-core instructions: `mma.sync`, `ldmatrix` and `stmatrix`, with their lane layouts.

In a warp, g = lane // 4 and t = lane % 4. A fragment register of two halves holds columns
2t and 2t+1 (of A, C, D) or rows 2t and 2t+1 (of B); registers of A alternate rows g and g+8 first,
then move right by 8 halves (4 TF32); PTX ISA, section "Matrix Fragments for mma".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uino_deploy.ptx.floats import Array, round_tf32, widen_bf16
from uino_deploy.ptx.handlers import Handler, State, unsupported
from uino_deploy.ptx.lanes import WARP, Lanes
from uino_deploy.ptx.parser import Instruction, Operand, Register
from uino_deploy.ptx.registers import Action
from uino_deploy.ptx.transfer import address_of, vector_of


class _Shape(NamedTuple):
    """The register counts of A and B, and the number of elements in one register."""

    a: int
    b: int
    packed: int


_SHAPES = {
    ("m16n8k16", "f16"): _Shape(4, 2, 2),
    ("m16n8k16", "bf16"): _Shape(4, 2, 2),
    ("m16n8k8", "f16"): _Shape(2, 1, 2),
    ("m16n8k8", "bf16"): _Shape(2, 1, 2),
    ("m16n8k8", "tf32"): _Shape(4, 2, 1),
    ("m16n8k4", "tf32"): _Shape(2, 1, 1),
}


def _elements(registers: Array, kind: str) -> Array:
    """Return the float32 elements of 32-bit registers, with a last axis of one or two."""
    if kind == "tf32":
        # The tensor core ignores the low 13 bits.
        return round_tf32(registers.view(np.float32), "rz")[..., None]
    halves = registers[..., None].view(np.uint16)
    return widen_bf16(halves) if kind == "bf16" else halves.view(np.float16).astype(np.float32)


def left_matrix(registers: Array, kind: str) -> Array:
    """Assemble A from its registers, uint32 [n, warps, 32]: float32 [warps, 16, k]."""
    count, warps, _ = registers.shape
    parts = _elements(registers, kind).reshape(count // 2, 2, warps, 8, 4, -1)
    ordered = parts.transpose(2, 1, 3, 0, 4, 5)  # warp, upper or lower half, g, right, t, element
    return ordered.reshape(warps, 16, -1)


def right_matrix(registers: Array, kind: str) -> Array:
    """Assemble B from its registers, uint32 [n, warps, 32]: float32 [warps, k, 8]."""
    count, warps, _ = registers.shape
    parts = _elements(registers, kind).reshape(count, warps, 8, 4, -1)
    return parts.transpose(1, 0, 3, 4, 2).reshape(warps, -1, 8)


def multiply_matrices(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `mma.sync.aligned.m16n8kK.row.col.f32.T.T.f32`: D = A B + C, accumulated in float32."""
    words = instruction.modifiers
    if len(words) != 9 or words[:2] != ("sync", "aligned") or words[3:5] != ("row", "col"):
        raise unsupported(instruction)
    shape, kind = _SHAPES.get((words[2], words[6])), words[6]
    if shape is None or words[5:] != ("f32", kind, kind, "f32"):
        raise unsupported(instruction)
    rows = [
        _rows(machine, instruction, operand, count)
        for operand, count in zip(instruction.operands, (4, shape.a, shape.b, 4), strict=True)
    ]
    d, a, b, c = rows
    lanes = machine.lanes

    def run() -> None:
        chosen = lanes.whole_warps(instruction, where)
        if chosen is not None and not chosen.size:
            return
        left = left_matrix(_gather(a, chosen), kind)
        right = right_matrix(_gather(b, chosen), kind)
        product = np.matmul(left, right)
        # Rows g and g+8, columns 2t and 2t+1: register 2*half + column.
        fragments = product.reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        for register, (target, addend) in enumerate(zip(d, c, strict=True)):
            total = addend.view(np.float32) if chosen is None else addend[chosen].view(np.float32)
            result = (fragments[register] + total).view(np.uint32)
            if chosen is None:
                target[...] = result
            else:
                target[chosen] = result

    return run


def _rows(machine: State, instruction: Instruction, operand: Operand, count: int) -> list[Array]:
    rows = []
    for item in vector_of(operand, count, instruction):
        if not isinstance(item, Register) or item.width != 4:
            raise unsupported(instruction)
        rows.append(machine.registers.row(item))
    return rows


def _gather(rows: list[Array], lanes: Array | None) -> Array:
    """Stack registers as [n, warps, 32]."""
    stacked = np.stack(rows if lanes is None else [row[lanes] for row in rows])
    return stacked.reshape(len(rows), -1, WARP)


def _matrices(instruction: Instruction) -> tuple[int, bool]:
    """Return how many 8x8 matrices an instruction moves, and whether it transposes them."""
    words = [m for m in instruction.modifiers if m != "trans"]
    space = "shared::cta" if "shared::cta" in words else "shared"
    if words[:3] != ["sync", "aligned", "m8n8"] or words[4:] != [space, "b16"]:
        raise unsupported(instruction)
    if words[3] not in ("x1", "x2", "x4"):
        raise unsupported(instruction)
    return int(words[3][1:]), "trans" in instruction.modifiers


def _participants(lanes: Lanes, chosen: Array | None, count: int) -> tuple[Array, Array]:
    """Return the lanes that take part (whole warps; all if None), and those that name a row.

    The first 8 * `count` lanes of a warp hold the addresses of the rows of `count` matrices.
    """
    everyone = np.arange(lanes.count) if chosen is None else chosen
    return everyone, everyone.reshape(-1, WARP)[:, : 8 * count].reshape(-1)


def _words(rows: Array, count: int, transposed: bool) -> tuple[Array, ...]:
    """Return the address of each element a lane holds, from the matrices' row addresses.

    Args:
        rows: Row addresses, [warps, 8 * count].
        count: Matrices.
        transposed: True if lanes hold columns.

    Returns:
        Addresses of words, [count, warps, 32]; two (low and high halves) if transposed.
    """
    lane = np.arange(WARP)
    matrix = np.arange(count)[:, None] * 8
    if not transposed:
        words = rows[:, matrix + lane // 4] + 4 * (lane % 4)
        return (words.transpose(1, 0, 2),)
    halves = [rows[:, matrix + 2 * (lane % 4) + e] + 2 * (lane // 4) for e in (0, 1)]
    return tuple(half.transpose(1, 0, 2) for half in halves)


def load_matrices(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `ldmatrix`: lane 8i + r names row r of matrix i; each lane receives two elements."""
    count, transposed = _matrices(instruction)
    targets = _rows(machine, instruction, instruction.operands[0], count)
    address, lanes, shared = _address(machine, instruction, 1), machine.lanes, machine.shared

    def run() -> None:
        chosen = lanes.whole_warps(instruction, where)
        everyone, named = _participants(lanes, chosen, count)
        if not named.size:
            return
        rows = address(named)
        shared.read(instruction, rows, None if count == 4 and chosen is None else named, 4, 4)
        table = rows.astype(np.int64).reshape(-1, 8 * count)
        parts = _words(table, count, transposed)
        if transposed:
            low, high = (
                [shared.peek(p.reshape(-1), everyone, 2).astype(np.uint32) for p in part]
                for part in parts
            )
            values = [a | (b << np.uint32(16)) for a, b in zip(low, high, strict=True)]
        else:
            values = [shared.peek(p.reshape(-1), everyone, 4) for p in parts[0]]
        for target, value in zip(targets, values, strict=True):
            target[slice(None) if chosen is None else chosen] = value

    return run


def store_matrices(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `stmatrix`: the inverse of `ldmatrix`."""
    count, transposed = _matrices(instruction)
    sources = _rows(machine, instruction, instruction.operands[1], count)
    address, lanes, shared = _address(machine, instruction, 0), machine.lanes, machine.shared

    def run() -> None:
        chosen = lanes.whole_warps(instruction, where)
        everyone, named = _participants(lanes, chosen, count)
        if not named.size:
            return
        halves = np.stack([row[everyone] for row in sources])[..., None].view(np.uint16)
        tiles = halves.reshape(count, -1, 8, 4, 2).transpose(1, 0, 2, 3, 4)
        matrices = tiles.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 4)
        whole = None if count == 4 and chosen is None else named
        shared.write(instruction, address(named), whole, [words[:, i] for i in range(4)])

    return run


def _address(
    machine: State, instruction: Instruction, position: int
) -> Callable[[Array | None], Array]:
    return address_of(machine, instruction, instruction.operands[position])


MATRICES: dict[str, Handler] = {
    "ldmatrix": load_matrices,
    "mma": multiply_matrices,
    "stmatrix": store_matrices,
}
