"""Registers as rows of numpy matrices, with one column per lane, and operands as arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from uino_deploy.ptx.errors import UnsupportedPtx
from uino_deploy.ptx.floats import Array, flush
from uino_deploy.ptx.lanes import Lanes
from uino_deploy.ptx.parser import (
    Immediate,
    Instruction,
    Operand,
    Program,
    Register,
    Special,
    Symbol,
    width_of,
)

Action: TypeAlias = Callable[[], object]

_STORAGE: dict[int, type[np.generic]] = {
    1: np.bool_,
    2: np.uint16,
    4: np.uint32,
    8: np.uint64,
}
_FIRST_PARAMETER = 1 << 20  # an address that no program could confuse with a small number
_LETTERS = {"b": "u", "u": "u", "s": "i", "f": "f"}


def dtype_of(kind: str) -> np.dtype[Any]:
    """Return numpy's type for a PTX type; bfloat16 is held as its bits (uint16).

    For packed pairs (`f16x2`) it is the type of one element.
    """
    if kind == "pred":
        return np.dtype(np.bool_)
    kind = kind.removesuffix("x2")
    if kind == "bf16":
        return np.dtype(np.uint16)
    return np.dtype(f"{_LETTERS[kind[0]]}{width_of(kind)}")


def is_packed(kind: str) -> bool:
    """Return whether a type holds two elements."""
    return kind.endswith("x2")


def parameter_addresses(program: Program) -> tuple[dict[str, int], int]:
    """Lay parameters out in their state space; return each address, and the end."""
    addresses, end = {}, _FIRST_PARAMETER
    for parameter in program.parameters:
        addresses[parameter.name] = end
        end += -(-parameter.size // 16) * 16
    return addresses, end


class Registers:
    """All registers of all lanes, and the values of an instruction's operands."""

    def __init__(self, program: Program, lanes: Lanes) -> None:
        self.lanes = lanes
        self.program = program
        self._addresses = {**program.shared, **parameter_addresses(program)[0]}
        self.special: dict[str, Array] = {}
        by_width: dict[int, list[Register]] = {}
        for register in program.registers.values():
            by_width.setdefault(register.width, []).append(register)
        self._rows: dict[str, Array] = {}
        self.defined: dict[str, Array] = {}
        for width, registers in by_width.items():
            if width not in _STORAGE:
                raise UnsupportedPtx(f"registers of {width} bytes", 1, registers[0].name)
            matrix = np.zeros((len(registers), lanes.count), dtype=_STORAGE[width])
            for register, row in zip(registers, matrix, strict=True):
                self._rows[register.name] = row

    def watch(self, names: frozenset[str]) -> None:
        """Record, for these registers, which lanes have written them."""
        self.defined = {name: np.zeros(self.lanes.count, dtype=np.bool_) for name in names}

    def reset(self) -> None:
        """Forget what was written: new blocks take the lanes."""
        for defined in self.defined.values():
            defined.fill(False)

    def row(self, register: Register) -> Array:
        """Return a register's bits, [lanes], as unsigned integers (predicates as bool)."""
        return self._rows[register.name]

    def target(self, instruction: Instruction, operand: Operand, kind: str) -> Array:
        """Return the view that results of type `kind` are written to.

        Shape [lanes], or [lanes, 2] for packed types.
        """
        if not isinstance(operand, Register) or operand.width != width_of(kind):
            raise UnsupportedPtx(
                f"the result is not a {kind} register", instruction.line, instruction.text
            )
        return self._as(self._rows[operand.name], kind)

    def source(self, instruction: Instruction, operand: Operand, kind: str) -> Array:
        """Return the view of an operand read as `kind`; constants have shape [1] (or [1, 2])."""
        if isinstance(operand, Register):
            if operand.width != width_of(kind):
                reason = f"{operand.name} does not have the width of {kind}"
                raise UnsupportedPtx(reason, instruction.line, instruction.text)
            return self._as(self._rows[operand.name], kind)
        if isinstance(operand, Immediate):
            return _constant(operand, kind)
        if isinstance(operand, Special) and operand.name in self.special:
            row = self.special[operand.name]
            if row.dtype.itemsize == width_of(kind):
                return self._as(row, kind)
        if isinstance(operand, Symbol) and operand.name in self._addresses:
            return _constant(Immediate(self._addresses[operand.name]), kind)
        reason = f"operand {getattr(operand, 'name', operand)} is not supported here"
        raise UnsupportedPtx(reason, instruction.line, instruction.text)

    def _as(self, row: Array, kind: str) -> Array:
        dtype = dtype_of(kind)
        view = row if row.dtype == dtype else row.view(dtype)
        return view.reshape(-1, 2) if is_packed(kind) else view


def _constant(value: Immediate, kind: str) -> Array:
    if value.real is not None:
        return np.array([value.real], dtype=dtype_of(kind))
    width = width_of(kind)
    bits = value.bits & ((1 << (8 * width)) - 1)
    if kind == "pred":
        return np.array([value.bits != 0])
    raw = np.frombuffer(bits.to_bytes(width, "little"), dtype=_STORAGE[width]).copy()
    constant = raw.view(dtype_of(kind))
    return constant.reshape(1, 2) if is_packed(kind) else constant


def fit(where: Array | None, target: Array) -> Array | None:
    """Return the lane mask in the shape that selects within `target`."""
    return where[:, None] if where is not None and target.ndim == 2 else where


def apply(function: np.ufunc, arguments: list[Array], target: Array, where: Array | None) -> Action:
    """Return the action `target = function(*arguments)` for the lanes in `where` (None: all)."""
    where = fit(where, target)
    if where is None:
        return partial(function, *arguments, out=target)
    return partial(function, *arguments, out=target, where=where)


def assign(compute: Callable[[], Array], target: Array, where: Array | None) -> Action:
    """Return the action `target = compute()` for the lanes in `where` (None: all)."""
    where = fit(where, target)
    if where is None:

        def everywhere() -> None:
            target[...] = compute()

        return everywhere

    def somewhere() -> None:
        np.copyto(target, compute(), where=where, casting="unsafe")

    return somewhere


def flushed(source: Array, ftz: bool) -> Callable[[], Array]:
    """Return a reader of `source` that flushes subnormals if `ftz` is set."""
    if ftz and source.dtype == np.float32:
        return lambda: flush(source)
    return lambda: source
