"""Moves, conversions between types, and comparisons that set predicates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uino_deploy.ptx.floats import (
    Array,
    flush,
    round_bf16,
    round_f16,
    round_tf32,
    saturate,
    widen_bf16,
)
from uino_deploy.ptx.handlers import Handler, State, kind_of, unsupported
from uino_deploy.ptx.parser import Instruction, Operand, Pair, Register, Vector, width_of
from uino_deploy.ptx.registers import Action, assign, dtype_of

_FLOATS = frozenset({"f16", "bf16", "f32", "f64", "tf32"})
_ROUND_TO_INTEGER: dict[str, np.ufunc] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38}


def move(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `mov`, which may also pack `{a, b}` into a wider register or unpack it."""
    kind, _ = kind_of(instruction, set())
    target, source = instruction.operands
    if isinstance(source, Vector):
        return _pack(machine, instruction, where, source, target, kind)
    if isinstance(target, Vector):
        return _unpack(machine, instruction, where, target, source, kind)
    value = machine.registers.source(instruction, source, kind)
    return assign(lambda: value, machine.registers.target(instruction, target, kind), where)


def _pack(
    machine: State,
    instruction: Instruction,
    where: Array | None,
    source: Vector,
    target: Operand,
    kind: str,
) -> Action:
    part = f"b{8 * width_of(kind) // len(source.items)}"
    whole = machine.registers.target(instruction, target, kind)
    columns = whole.view(dtype_of(part)).reshape(-1, len(source.items))
    rows = []
    for item in source.items:
        if item is None:
            raise unsupported(instruction)
        rows.append(machine.registers.source(instruction, item, part))

    def compute() -> Array:
        packed = np.empty_like(columns)
        for column, row in enumerate(rows):
            packed[:, column] = row
        return packed.reshape(-1).view(whole.dtype)

    return assign(compute, whole, where)


def _unpack(
    machine: State,
    instruction: Instruction,
    where: Array | None,
    target: Vector,
    source: Operand,
    kind: str,
) -> Action:
    part = f"b{8 * width_of(kind) // len(target.items)}"
    whole = machine.registers.source(instruction, source, kind)
    columns = whole.view(dtype_of(part)).reshape(-1, len(target.items))
    actions = []
    for column, item in enumerate(target.items):
        if isinstance(item, Register):
            row = machine.registers.target(instruction, item, part)
            actions.append(assign(_reader(columns[:, column]), row, where))

    def run() -> None:
        for action in actions:
            action()

    return run


def _reader(values: Array) -> Callable[[], Array]:
    return lambda: values


def convert(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `cvt` between integers and floats, or of two floats into a packed pair."""
    if len(instruction.modifiers) < 2:
        raise unsupported(instruction)
    *modes, to, of = instruction.modifiers
    known = {"rn", "rz", "rna", "ftz", "sat", "satfinite", "relu", *_ROUND_TO_INTEGER}
    if unknown := set(modes) - known:
        raise unsupported(instruction, f"modifier .{min(unknown)}")
    if to in ("f16x2", "bf16x2") and of == "f32":
        return _convert_pair(machine, instruction, where, set(modes), to)
    if not {to, of} <= _FLOATS | {f"{s}{n}" for s in "us" for n in (8, 16, 32, 64)}:
        raise unsupported(instruction)
    target_kind = "f32" if to == "tf32" else to
    read = _wide_source(machine, instruction, instruction.operands[1], of)
    rounding = _rounding(instruction, set(modes), to, of)
    row, kind = _wide_target(machine, instruction, target_kind)

    def compute() -> Array:
        value = rounding(read())
        return value if kind is None else value.astype(kind)

    return assign(compute, row, where)


def _wide_target(
    machine: State, instruction: Instruction, kind: str
) -> tuple[Array, np.dtype[np.generic] | None]:
    """Return the result's view; registers wider than an integer type are extended."""
    operand = instruction.operands[0]
    if isinstance(operand, Register) and operand.width > width_of(kind) and kind[0] in "us":
        extended = f"{kind[0]}{8 * operand.width}"
        return machine.registers.target(instruction, operand, extended), dtype_of(extended)
    return machine.registers.target(instruction, operand, kind), None


def _wide_source(
    machine: State, instruction: Instruction, operand: Operand, kind: str
) -> Callable[[], Array]:
    """Return a reader of values; a register wider than its integer type is truncated."""
    if isinstance(operand, Register) and operand.width > width_of(kind) and kind[0] in "us":
        row = machine.registers.row(operand)
        narrow = dtype_of(kind)
        return lambda: row.astype(narrow)
    view = machine.registers.source(instruction, operand, kind)
    if kind == "bf16":
        return lambda: widen_bf16(view)
    return lambda: view


def _rounding(
    instruction: Instruction, modes: set[str], to: str, of: str
) -> Callable[[Array], Array]:
    """Return the function from source values to result values (bits, for bfloat16)."""
    mode = next(iter(modes & {"rn", "rz", "rna", *_ROUND_TO_INTEGER}), None)
    if to in _FLOATS:
        if mode in _ROUND_TO_INTEGER and to != of:
            raise unsupported(instruction)
        return lambda values: _to_float(values, to, mode, modes)
    if of in _FLOATS:
        if mode not in _ROUND_TO_INTEGER or modes & {"relu", "satfinite"}:
            raise unsupported(instruction)
        return lambda values: _float_to_integer(values, to, _ROUND_TO_INTEGER[mode], modes)
    if modes - {"sat"}:
        raise unsupported(instruction)
    return lambda values: _integer_to_integer(values, to, "sat" in modes)


def _to_float(values: Array, to: str, mode: str | None, modes: set[str]) -> Array:
    if "ftz" in modes and values.dtype == np.float32:
        values = flush(values)
    if mode in _ROUND_TO_INTEGER:
        values = _ROUND_TO_INTEGER[mode](values)
    if "relu" in modes:
        values = np.where(np.isnan(values), values, np.maximum(values, 0)).astype(values.dtype)
    if "satfinite" in modes and to in _LARGEST:
        bound = values.dtype.type(_LARGEST[to])
        values = np.where(np.isnan(values), values, np.clip(values, -bound, bound))
    if "sat" in modes:
        values = saturate(values)
    if to == "f32":
        return _rounded_single(values, mode)
    if to == "tf32":
        return round_tf32(values, mode or "rna")
    if to == "bf16":
        return round_bf16(values.astype(np.float32), "rz" if mode == "rz" else "rn")
    if to == "f16":
        return round_f16(values, "rz" if mode == "rz" else "rn")
    return values.astype(np.float64)


def _rounded_single(values: Array, mode: str | None) -> Array:
    nearest = values.astype(np.float32)
    if mode != "rz":
        return nearest
    away = np.abs(nearest.astype(np.float64)) > np.abs(values.astype(np.float64))
    return np.where(away, np.nextafter(nearest, np.float32(0)), nearest)


def _float_to_integer(values: Array, to: str, rounding: np.ufunc, modes: set[str]) -> Array:
    """Round, clamp to the type's range, NaN to 0."""
    if "ftz" in modes and values.dtype == np.float32:
        values = flush(values)
    limits = np.iinfo(dtype_of(to))
    whole = rounding(values.astype(np.float64))
    inside = np.clip(np.nan_to_num(whole, nan=0.0), float(limits.min), float(limits.max))
    bits = np.where(inside >= float(limits.max), 0.0, inside).astype(dtype_of(to))
    return np.where(inside >= float(limits.max), dtype_of(to).type(limits.max), bits)


def _integer_to_integer(values: Array, to: str, sat: bool) -> Array:
    if sat:
        limits = np.iinfo(dtype_of(to))
        source = np.iinfo(values.dtype)
        low, high = max(limits.min, source.min), min(limits.max, source.max)
        values = np.clip(values, values.dtype.type(low), values.dtype.type(high))
    return values.astype(dtype_of(to))


def _convert_pair(
    machine: State, instruction: Instruction, where: Array | None, modes: set[str], to: str
) -> Action:
    """Bind `cvt.rn.f16x2.f32 d, a, b`: a becomes the upper half, b the lower."""
    if modes - {"rn", "rz", "relu", "satfinite"} or len(instruction.operands) != 3:
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], to)
    upper, lower = (
        machine.registers.source(instruction, o, "f32") for o in instruction.operands[1:]
    )
    mode = "rz" if "rz" in modes else "rn"
    element = to.removesuffix("x2")

    def compute() -> Array:
        both = np.empty(target.shape, dtype=np.float32)
        both[:, 0], both[:, 1] = lower, upper
        return _to_float(both, element, mode, modes)

    return assign(compute, target, where)


_COMPARE: dict[str, np.ufunc] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_UNORDERED = frozenset({"equ", "neu", "ltu", "leu", "gtu", "geu"})
_NAN = frozenset({"num", "nan"})
_COMBINE: dict[str, np.ufunc] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _any_nan(a: Array, b: Array) -> Array:
    either: Array = np.isnan(a) | np.isnan(b)
    return either


def _comparison(name: str, floats: bool) -> Callable[[Array, Array], Array]:
    """Return a comparison; a float NaN makes it false, or true if its name ends in u."""
    if name == "nan":
        return _any_nan
    if name == "num":
        return lambda a, b: ~_any_nan(a, b)
    if name in _UNORDERED:
        ordered = _COMPARE[name.removesuffix("u")]
        return lambda a, b: ordered(a, b) | _any_nan(a, b)
    if name == "ne" and floats:
        return lambda a, b: np.not_equal(a, b) & ~_any_nan(a, b)
    return _COMPARE[name]


def set_predicate(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `setp`: compare two sources; `p|q` also sets the complement."""
    combine = next((m for m in instruction.modifiers if m in _COMBINE), None)
    names = {*_COMPARE, *_UNORDERED, *_NAN}
    kind, modifiers = kind_of(instruction, {*names, *_COMBINE, "ftz"})
    comparisons = modifiers & names
    if len(comparisons) != 1 or kind.endswith("x2") or (combine and len(instruction.operands) != 4):
        raise unsupported(instruction)
    compare = _comparison(comparisons.pop(), kind in _FLOATS)
    a, b = (_wide_source(machine, instruction, o, kind) for o in instruction.operands[1:3])
    if "ftz" in modifiers:
        a, b = _flushing(a), _flushing(b)

    def compute() -> Array:
        return compare(a(), b())

    compared = compute
    if combine is not None:
        other = machine.registers.source(instruction, instruction.operands[3], "pred")
        joined = _COMBINE[combine]

        def compared() -> Array:
            result: Array = joined(compute(), other)
            return result

    result = instruction.operands[0]
    if isinstance(result, Pair):
        if combine is not None:
            raise unsupported(instruction)
        first = machine.registers.target(instruction, result.first, "pred")
        second = machine.registers.target(instruction, result.second, "pred")

        def both() -> None:
            value = compared()
            assign(lambda: value, first, where)()
            assign(lambda: ~value, second, where)()

        return both
    return assign(compared, machine.registers.target(instruction, result, "pred"), where)


def _flushing(read: Callable[[], Array]) -> Callable[[], Array]:
    return lambda: flush(read())


def to_address_space(machine: State, instruction: Instruction, where: Array | None) -> Action:
    """Bind `cvta`: a global address is its own generic address; others are refused."""
    if "global" not in instruction.modifiers:
        raise unsupported(instruction)
    target = machine.registers.target(instruction, instruction.operands[0], "u64")
    source = machine.registers.source(instruction, instruction.operands[1], "u64")
    return assign(lambda: source, target, where)


CONVERSIONS: dict[str, Handler] = {
    "cvt": convert,
    "cvta": to_address_space,
    "mov": move,
    "setp": set_predicate,
}
