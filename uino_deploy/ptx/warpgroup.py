"""`wgmma`: products of four warps on matrices in shared memory, in flight until a wait.

Registers of a fragment are those of `mma` (see `matrix`): warp w of the group holds rows 16w to
16w + 15. A matrix descriptor names tiles in shared memory: PTX ISA, section "Asynchronous
Warpgroup Level Matrix Shared Memory Layout". The sums reach their registers when the wait
completes; what writes over a tile before that is a fault. Not modelled: registers of A that
change while the product is in flight, and `fence.proxy.async`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uino_deploy.ptx.floats import Array, round_tf32, widen_bf16
from uino_deploy.ptx.handlers import Handler, State, unsupported
from uino_deploy.ptx.lanes import WARP
from uino_deploy.ptx.matrix import left_matrix
from uino_deploy.ptx.parser import Immediate, Instruction, Operand, Register, Vector
from uino_deploy.ptx.registers import Action

GROUP = 4 * WARP
_ROWS = 64
_SHAPE = re.compile(r"m64n(\d+)k(8|16)")
_SWIZZLED_BYTES = {1: 128, 2: 64, 3: 32}


class _Layout(NamedTuple):
    """A decoded matrix descriptor of every group; bytes, int64, [groups]."""

    start: Array
    leading: Array
    stride: Array
    swizzle: int


class _Form(NamedTuple):
    """The operands of an instruction: their type, columns, and layout in memory."""

    kind: str
    columns: int
    left_transposed: bool
    right_transposed: bool

    @property
    def element_bytes(self) -> int:
        return 4 if self.kind == "tf32" else 2

    @property
    def depth(self) -> int:
        return 32 // self.element_bytes


def _form(instruction: Instruction) -> _Form:
    """Read the modifiers and immediate operands.

    Raises:
        UnsupportedPtx: Another shape, type or a negated operand.
    """
    words = instruction.modifiers
    shape = _SHAPE.fullmatch(words[3]) if len(words) == 7 else None
    kind = words[5] if shape else ""
    if shape is None or words[:3] != ("mma_async", "sync", "aligned"):
        raise unsupported(instruction)
    if kind not in ("f16", "bf16", "tf32") or words[4:] != ("f32", kind, kind):
        raise unsupported(instruction)
    scales, transposes = instruction.operands[4:6], instruction.operands[6:]
    given = [o.bits for o in transposes if isinstance(o, Immediate)]
    in_registers = isinstance(instruction.operands[1], Vector)
    if any(o != Immediate(1) for o in scales) or len(given) != (
        0 if kind == "tf32" else 1 if in_registers else 2
    ):
        raise unsupported(instruction, "operands")
    left, right = [0, 0, *map(int, given)][-2:]
    form = _Form(kind, int(shape[1]), bool(left) and not in_registers, bool(right))
    if form.depth != int(shape[2]):
        raise unsupported(instruction)
    return form


def _layout(descriptors: Array) -> _Layout:
    """Decode the descriptors of every group, uint64 [groups]."""
    modes = np.unique(descriptors >> np.uint64(62))
    if modes.size != 1 or ((descriptors >> np.uint64(49)) & np.uint64(7)).any():
        raise ValueError("several swizzling modes, or a base offset")

    def field(first: int) -> Array:
        value: Array = ((descriptors >> np.uint64(first)) & np.uint64(0x3FFF)).astype(np.int64) << 4
        return value

    return _Layout(field(0), field(16), field(32), int(modes[0]))


def element_addresses(
    layout: _Layout, outer: int, depth: int, size: int, transposed: bool
) -> Array:
    """Return the shared address of every element of a matrix.

    Args:
        layout: Where it lies, for each group.
        outer: Rows of A, or columns of B.
        depth: Elements along the axis that is summed.
        size: Bytes of an element.
        transposed: Whether neighbours in memory follow the outer axis, not the summed one.

    Returns:
        Bytes, int64, [groups, outer, depth].
    """
    outside, inside = np.arange(outer)[:, None], np.arange(depth)[None, :]
    rows, across = (inside, outside * size) if transposed else (outside, inside * size)
    width = _SWIZZLED_BYTES.get(layout.swizzle, 16)
    beside, below = layout.leading, layout.stride
    if layout.swizzle == 0 and transposed:
        beside, below = below, beside
    start, beside, below = (t[:, None, None] for t in (layout.start, beside, below))
    # A row is `width` bytes long, eight rows lie one after the other.
    address = start + rows // 8 * below + across // width * beside + rows % 8 * width
    address = address + across % width
    # The bits that name the 16 bytes within a row change with the row.
    mask = width // 16 - 1
    swizzled: Array = address ^ (((address >> 7) & mask) << 4)
    return swizzled


def _elements(bits: Array, kind: str) -> Array:
    if kind == "tf32":
        return round_tf32(bits.view(np.float32), "rz")
    return widen_bf16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def _matrix(
    machine: State,
    instruction: Instruction,
    operand: Operand,
    outer: int,
    form: _Form,
    turned: bool,
) -> Callable[[Array], tuple[Array, Array]]:
    """Return a reader of a matrix in shared memory for the groups that these lanes lead.

    It gives float32 [groups, outer, depth] and the granules that it read.
    """
    if not isinstance(operand, Register) or operand.width != 8:
        raise unsupported(instruction)
    row, size = machine.registers.row(operand), form.element_bytes

    def read(leaders: Array) -> tuple[Array, Array]:
        layout = _layout(row[leaders])
        places = element_addresses(layout, outer, form.depth, size, turned)
        lanes = np.repeat(leaders, outer * form.depth)
        bits, granules = machine.shared.read_in_flight(instruction, places.reshape(-1), lanes, size)
        return _elements(bits, form.kind).reshape(places.shape), granules

    return read


def multiply(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T`: D = A B (+ D), summed in float32."""
    form = _form(instruction)
    target, left, right, scale = instruction.operands[:4]
    sums = _rows(machine, instruction, target, form.columns // 2)
    right_of = _matrix(machine, instruction, right, form.columns, form, form.right_transposed)
    left_of, held = None, []
    if isinstance(left, Vector):
        held = _rows(machine, instruction, left, 4)
    else:
        left_of = _matrix(machine, instruction, left, _ROWS, form, form.left_transposed)
    added = _added(machine, instruction, scale)

    def run() -> None:
        lanes = _whole_groups(machine, instruction, where)
        if not lanes.size:
            return
        leaders = lanes[::GROUP]
        b, granules = right_of(leaders)
        if left_of is None:
            registers = np.stack([row[lanes] for row in held]).reshape(4, -1, WARP)
            a = left_matrix(registers, form.kind).reshape(leaders.size, _ROWS, -1)
        else:
            a, more = left_of(leaders)
            granules = np.concatenate([granules, more])
        product = np.matmul(a, b.transpose(0, 2, 1))
        # Rows g and g + 8 of each warp's sixteen, columns 2t and 2t + 1 of every eight.
        parts = product.reshape(leaders.size, 4, 2, 8, form.columns // 8, 4, 2)
        fragments = parts.transpose(4, 2, 6, 0, 1, 3, 5).reshape(form.columns // 2, -1)
        machine.shared.products.start(sums, fragments, added(lanes), lanes, granules)

    return run


def _added(machine: State, instruction: Instruction, scale: Operand) -> Callable[[Array], Array]:
    """Return a reader of whether, for each lane, the product is added to the sums."""
    if isinstance(scale, Immediate):
        fixed = bool(scale.bits)
        return lambda lanes: np.full(lanes.size, fixed)
    if not isinstance(scale, Register) or scale.width != 1:
        raise unsupported(instruction)
    row = machine.registers.row(scale)
    return lambda lanes: row[lanes]


def _rows(machine: State, instruction: Instruction, operand: Operand, count: int) -> list[Array]:
    items = operand.items if isinstance(operand, Vector) else ()
    rows = [machine.registers.row(i) for i in items if isinstance(i, Register) and i.width == 4]
    if len(rows) != count or len(items) != count:
        raise unsupported(instruction, "registers")
    return rows


def _whole_groups(machine: State, instruction: Instruction, where: Array | None) -> Array:
    """Return the lanes that take part after checking that they are groups of four warps."""
    lanes = machine.lanes
    if lanes.threads % GROUP:
        raise unsupported(instruction, "a block that is not made of warp groups")
    if where is None:
        return np.arange(lanes.count)
    counts = np.count_nonzero(where.reshape(-1, GROUP), axis=1)
    if ((counts != 0) & (counts != GROUP)).any():
        lane = int(np.argmax((counts != 0) & (counts != GROUP))) * GROUP
        raise lanes.fault(instruction, "a warp group's threads do not all arrive here", lane)
    return np.flatnonzero(where)


def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `wgmma` in all its forms."""
    step, products = instruction.modifiers[0], machine.shared.products
    if step == "mma_async":
        return multiply(machine, instruction, where)
    if instruction.modifiers[1:] != ("sync", "aligned"):
        raise unsupported(instruction)
    if step == "fence":
        return lambda: None
    if step == "commit_group":
        return lambda: products.commit(_whole_groups(machine, instruction, where))
    if step == "wait_group":
        allowed = instruction.operands[0]
        if isinstance(allowed, Immediate):
            bits = allowed.bits
            return lambda: machine.shared.finish(_whole_groups(machine, instruction, where), bits)
    raise unsupported(instruction)


WARPGROUPS: dict[str, Handler] = {"wgmma": handle}
