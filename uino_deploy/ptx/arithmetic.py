"""Elementwise instructions: arithmetic, comparison, selection and bitwise operations.

Integers wrap. float32 is computed in float32, fused multiply-add in float64 and then rounded,
approximations in float64: a GPU's approximate units may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uino_deploy.ptx.floats import Array, flush, round_bf16, saturate, widen_bf16
from uino_deploy.ptx.handlers import Handler, State, kind_of, unsupported
from uino_deploy.ptx.parser import Instruction, width_of
from uino_deploy.ptx.registers import Action, apply, assign, flushed

_FLOATS = frozenset({"f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2"})
_ALLOWED = {
    "ftz",
    "sat",
    "rn",
    "approx",
    "full",
    "lo",
    "hi",
    "wide",
    "NaN",
}


def _computed(
    machine: State,
    instruction: Instruction,
    where: Array | None,
    function: Callable[..., Array],
    kind: str,
    modifiers: set[str],
    arity: int,
) -> Action:
    """Apply an array function to sources of one type; flush and round as the instruction says."""
    if len(instruction.operands) != arity + 1:
        raise unsupported(instruction, "operand count")
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    rows = [machine.registers.source(instruction, o, kind) for o in instruction.operands[1:]]
    if kind in ("bf16", "bf16x2"):
        return assign(
            lambda: round_bf16(function(*[widen_bf16(row) for row in rows])), target, where
        )
    ftz, sat = "ftz" in modifiers, "sat" in modifiers
    if sat and kind not in _FLOATS:
        raise unsupported(instruction)
    if not ftz and not sat and isinstance(function, np.ufunc):
        return apply(function, rows, target, where)
    sources = [flushed(row, ftz) for row in rows]

    def compute() -> Array:
        value = function(*[source() for source in sources])
        if ftz:
            value = flush(value)
        return saturate(value) if sat else value

    return assign(compute, target, where)


def simple(function: Callable[..., Array], arity: int = 2) -> Handler:
    """Return the handler of an elementwise instruction whose operands all have one type."""

    def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
        kind, modifiers = kind_of(instruction, _ALLOWED - {"lo", "hi", "wide"})
        return _computed(machine, instruction, where, function, kind, modifiers, arity)

    return handle


def _add_to_zero(a: Array, b: Array) -> Array:
    """Add float32, rounding to zero.

    The float64 sum may itself have been rounded up to a float32 that the exact sum does not reach;
    its error, exact by Knuth's two-sum, shows this.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    nearest = total.astype(np.float32)
    away = np.abs(nearest.astype(np.float64)) - np.abs(total)
    beyond = (away > 0) | ((away == 0) & (np.sign(error) * np.sign(total) < 0))
    rounded = np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)
    return np.where(np.isfinite(total), rounded, nearest)


def _mixed(
    machine: State, instruction: Instruction, where: Array | None, function: Callable[..., Array]
) -> Action | None:
    """Bind an instruction from sm_100 on whose last source alone is float32, as the result is.

    PTX ISA, section "Mixed Precision Floating Point Instructions".
    """
    *others, wide, narrow = ("", "", *instruction.modifiers)
    if wide != "f32" or narrow not in ("f16", "bf16"):
        return None
    if set(others) - {"", "rn"}:
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "f32")
    *factors, addend = instruction.operands[1:]
    rows = [machine.registers.source(instruction, o, narrow) for o in factors]
    last = machine.registers.source(instruction, addend, "f32")

    def widened(row: Array) -> Array:
        values = widen_bf16(row) if narrow == "bf16" else row
        return values.astype(np.float64)

    def compute() -> Array:
        return function(*map(widened, rows), last.astype(np.float64)).astype(np.float32)

    return assign(compute, target, where)


def subtract(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `sub`."""
    mixed = _mixed(machine, instruction, where, np.subtract)
    return mixed or simple(np.subtract)(machine, instruction, where)


def add(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `add`, which for float32 may also round to zero."""
    mixed = _mixed(machine, instruction, where, np.add)
    if mixed is not None:
        return mixed
    kind, modifiers = kind_of(instruction, {"ftz", "sat", "rn", "rz"})
    if "rz" in modifiers and kind != "f32":
        raise unsupported(instruction)
    function = _add_to_zero if "rz" in modifiers else np.add
    return _computed(machine, instruction, where, function, kind, modifiers, 2)


def _round_to(values: Array, kind: str) -> Array:
    return values.astype(np.float16 if kind.startswith("f16") else np.float32)


def fma(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `fma.rn`: the product is exact in float64; the sum rounds there and to the type."""
    mixed = _mixed(machine, instruction, where, lambda a, b, c: a * b + c)
    if mixed is not None:
        return mixed
    kind, modifiers = kind_of(instruction, {"rn", "ftz", "sat", "relu"})
    if kind == "f64" or kind not in _FLOATS or "relu" in modifiers:
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    a, b, c = (machine.registers.source(instruction, o, kind) for o in instruction.operands[1:])
    if kind.startswith("bf16"):

        def brain() -> Array:
            product = np.multiply(widen_bf16(a), widen_bf16(b), dtype=np.float64)
            return round_bf16((product + widen_bf16(c)).astype(np.float32))

        return assign(brain, target, where)
    ftz, sat = "ftz" in modifiers, "sat" in modifiers
    wide = np.empty(target.shape, dtype=np.float64)
    if where is None and not ftz and not sat:

        def plain() -> None:
            np.multiply(a, b, wide, dtype=np.float64)
            np.add(wide, c, wide)
            target[...] = wide

        return plain
    read_a, read_b, read_c = flushed(a, ftz), flushed(b, ftz), flushed(c, ftz)

    def compute() -> Array:
        np.multiply(read_a(), read_b(), wide, dtype=np.float64)
        np.add(wide, read_c(), wide)
        value = _round_to(wide, kind)
        if ftz:
            value = flush(value)
        return saturate(value) if sat else value

    return assign(compute, target, where)


def _wider(kind: str) -> str:
    return f"{kind[0]}{int(kind[1:]) * 2}"


def _product(machine: State, instruction: Instruction, kind: str, part: str) -> Callable[[], Array]:
    """Return a reader of the low half, high half or whole product of two integer sources."""
    a, b = (machine.registers.source(instruction, o, kind) for o in instruction.operands[1:3])
    if part == "lo":
        return lambda: np.multiply(a, b)
    width = 8 * width_of(kind)
    if width == 64:
        raise unsupported(instruction)
    wide = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{width // 4}")
    if part == "wide":
        return lambda: np.multiply(a, b, dtype=wide)
    narrow = a.dtype
    return lambda: (np.multiply(a, b, dtype=wide) >> wide.type(width)).astype(narrow)


def multiply(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `mul`: of floats, or the low half, high half or whole product of integers."""
    kind, modifiers = kind_of(instruction, _ALLOWED)
    part = modifiers & {"lo", "hi", "wide"}
    if kind in _FLOATS:
        if part:
            raise unsupported(instruction)
        return _computed(machine, instruction, where, np.multiply, kind, modifiers, 2)
    if len(part) != 1 or modifiers - part:
        raise unsupported(instruction)
    result = _wider(kind) if "wide" in part else kind
    target = machine.registers.target(instruction, instruction.operands[0], result)
    return assign(_product(machine, instruction, kind, part.pop()), target, where)


def multiply_add(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `mad` of integers; of floats it is `fma`."""
    kind, modifiers = kind_of(instruction, _ALLOWED)
    if kind in _FLOATS:
        return fma(machine, instruction, where)
    part = modifiers & {"lo", "hi", "wide"}
    if len(part) != 1 or modifiers - part:
        raise unsupported(instruction)
    result = _wider(kind) if "wide" in part else kind
    target = machine.registers.target(instruction, instruction.operands[0], result)
    addend = machine.registers.source(instruction, instruction.operands[3], result)
    product = _product(machine, instruction, kind, part.pop())
    return assign(lambda: np.add(product(), addend), target, where)


def truncated_quotient(a: Array, b: Array) -> Array:
    """Divide integers towards zero; a zero divisor gives all ones, as on GPUs."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    quotient = np.floor_divide(a, divisor)
    if a.dtype.kind == "i":
        quotient += (quotient < 0) & (quotient * divisor != a)
    return np.where(b == 0, np.array(-1).astype(b.dtype), quotient)


def divide(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `div`: floats in their type, integers towards zero."""
    kind, modifiers = kind_of(instruction, {"approx", "full", "rn", "ftz"})
    function = np.divide if kind in _FLOATS else truncated_quotient
    return _computed(machine, instruction, where, function, kind, modifiers, 2)


def _remainder(a: Array, b: Array) -> Array:
    remainder: Array = a - truncated_quotient(a, b) * b
    return remainder


def unary64(function: Callable[[Array], Array]) -> Handler:
    """Return the handler of a special function, computed in float64 and rounded to the type."""

    def rounded(values: Array) -> Array:
        return function(values.astype(np.float64)).astype(values.dtype)

    def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
        kind, modifiers = kind_of(instruction, {"approx", "rn", "ftz"})
        if kind not in _FLOATS:
            raise unsupported(instruction)
        return _computed(machine, instruction, where, rounded, kind, modifiers, 1)

    return handle


def extreme(function: np.ufunc, with_nan: np.ufunc) -> Handler:
    """Return the handler of `min` or `max`, of two or three operands; `.NaN` keeps NaN."""

    def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
        kind, modifiers = kind_of(instruction, {"ftz", "NaN"})
        chosen = with_nan if "NaN" in modifiers or kind not in _FLOATS else function
        if len(instruction.operands) == 3:
            return _computed(machine, instruction, where, chosen, kind, modifiers, 2)

        def three(a: Array, b: Array, c: Array) -> Array:
            result: Array = chosen(chosen(a, b), c)
            return result

        return _computed(machine, instruction, where, three, kind, modifiers, 3)

    return handle


def logic(function: np.ufunc, boolean: np.ufunc, arity: int = 2) -> Handler:
    """Return the handler of a bitwise instruction, which predicates share."""

    def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
        kind, modifiers = kind_of(instruction, set())
        chosen = boolean if kind == "pred" else function
        return _computed(machine, instruction, where, chosen, kind, modifiers, arity)

    return handle


def shift(function: np.ufunc) -> Handler:
    """Return the handler of a shift; amounts beyond the width give zero (or the sign)."""

    def handle(machine: State, instruction: Instruction, where: Array | None) -> Action:
        kind, _ = kind_of(instruction, set())
        target = machine.registers.target(instruction, instruction.operands[0], kind)
        value = machine.registers.source(instruction, instruction.operands[1], kind)
        amount = machine.registers.source(instruction, instruction.operands[2], "u32")
        wide = np.dtype(f"{target.dtype.kind}8")
        limit = np.uint32(63)

        def compute() -> Array:
            bounded = np.minimum(amount, limit).astype(wide)
            return function(value.astype(wide), bounded).astype(target.dtype)

        if amount.shape == (1,) and int(amount[0]) < 8 * width_of(kind):
            return apply(function, [value, amount.astype(target.dtype)], target, where)
        if width_of(kind) == 8:
            return assign(lambda: _shift64(function, value, amount), target, where)
        return assign(compute, target, where)

    return handle


def _shift64(function: np.ufunc, value: Array, amount: Array) -> Array:
    bounded = np.minimum(amount, np.uint32(63)).astype(value.dtype)
    shifted = function(value, bounded)
    beyond = function(shifted, value.dtype.type(1))
    result: Array = np.where(amount > np.uint32(63), beyond, shifted)
    return result


def select(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `selp`: the first source if the predicate holds, else the second."""
    kind, _ = kind_of(instruction, set())
    target = machine.registers.target(instruction, instruction.operands[0], kind)
    a, b = (machine.registers.source(instruction, o, kind) for o in instruction.operands[1:3])
    chosen = machine.registers.source(instruction, instruction.operands[3], "pred")
    return assign(lambda: np.where(chosen, a, b), target, where)


ELEMENTWISE: dict[str, Handler] = {
    "abs": simple(np.abs, 1),
    "add": add,
    "and": logic(np.bitwise_and, np.logical_and),
    "cos": unary64(np.cos),
    "div": divide,
    "ex2": unary64(np.exp2),
    "fma": fma,
    "lg2": unary64(np.log2),
    "mad": multiply_add,
    "max": extreme(np.fmax, np.maximum),
    "min": extreme(np.fmin, np.minimum),
    "mul": multiply,
    "neg": simple(np.negative, 1),
    "not": logic(np.bitwise_not, np.logical_not, 1),
    "or": logic(np.bitwise_or, np.logical_or),
    "rcp": unary64(np.reciprocal),
    "rem": simple(_remainder),
    "rsqrt": unary64(lambda values: 1.0 / np.sqrt(values)),
    "selp": select,
    "shl": shift(np.left_shift),
    "shr": shift(np.right_shift),
    "sin": unary64(np.sin),
    "sqrt": unary64(np.sqrt),
    "sub": subtract,
    "tanh": unary64(np.tanh),
    "xor": logic(np.bitwise_xor, np.logical_xor),
}
