"""The parser from the text of one PTX entry to instructions with labels and typed operands.

Comments, `.loc` and debug sections are dropped. Registers of nested scopes (Triton's inline
assembly) are renamed so that a name means one register in the whole program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from uino_deploy.ptx.errors import UnsupportedPtx


class Register(NamedTuple):
    """A register of `width` bytes; predicates have width 1."""

    name: str
    width: int


class Immediate(NamedTuple):
    """A literal: an integer, or the bits of a float; `real` holds a decimal float."""

    bits: int
    real: float | None = None


class Special(NamedTuple):
    """A special register such as `%tid.x`."""

    name: str


class Symbol(NamedTuple):
    """The name of a variable or parameter."""

    name: str


class Vector(NamedTuple):
    """A vector `{a, b, ...}`; None is the sink `_`."""

    items: tuple[Register | Immediate | None, ...]


class Address(NamedTuple):
    """An address `[base + offset]`."""

    base: Register | Symbol | None
    offset: int


class Pair(NamedTuple):
    """A pair `d|p`: a result and its predicate."""

    first: Register
    second: Register


Operand: TypeAlias = Register | Immediate | Special | Symbol | Vector | Address | Pair


@dataclass(frozen=True)
class Instruction:
    """One statement.

    `opcode` is the part before the first dot, `modifiers` the parts after it; `text` is the
    statement as written, with spaces collapsed, and `line` its line in the PTX text, from 1.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str
    line: int

    @property
    def name(self) -> str:
        """The full mnemonic, such as `add.f32`."""
        return ".".join((self.opcode, *self.modifiers))


class Parameter(NamedTuple):
    """A kernel parameter of `size` bytes; if `struct` is set, an array of bytes (a struct)."""

    name: str
    size: int
    struct: bool


@dataclass
class Program:
    """A parsed entry: what `launch` executes."""

    name: str
    target: str
    version: str
    parameters: list[Parameter]
    threads: int | None
    shared: dict[str, int]
    static_shared: int
    dynamic_shared: str | None
    registers: dict[str, Register]
    instructions: list[Instruction]
    labels: dict[str, int] = field(default_factory=dict)


_WIDTHS = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "f16": 2, "bf16": 2, "b128": 16}
_IDENTIFIER = r"[A-Za-z_$%][\w$]*"
_LABEL = re.compile(rf"({_IDENTIFIER})\s*:(?!:)")
_ENTRY = re.compile(rf"\.entry\s+({_IDENTIFIER})\s*\(")
_SHARED = re.compile(
    rf"\.shared\s+(?:\.align\s+([1-9]\d{{0,5}})\s+)?\.(\w+)\s+({_IDENTIFIER})\s*"
    r"(?:\[(\d{0,9})\])?\s*;"
)
MOST_REGISTERS = 1 << 17
"""Registers of the largest program that is read; Triton's have some ten thousand."""

MOST_SHARED = 1 << 20
"""Bytes of static shared memory; no GPU has more in a block."""

_LINE_DIRECTIVE = re.compile(r"\.(?:loc|file|pragma)\b")


def width_of(kind: str) -> int:
    """Return the size in bytes of a type such as `f32`, `b16x2` or `pred`.

    Raises:
        KeyError: The name is not a type.
    """
    if kind in _WIDTHS:
        return _WIDTHS[kind]
    match = re.fullmatch(r"(?:[bsuf]|bf|f)(16|32|64)(x2)?", kind)
    if match is None:
        raise KeyError(kind)
    return int(match[1]) // 8 * (2 if match[2] else 1)


def _width(kind: str, line: int, statement: str) -> int:
    try:
        return width_of(kind)
    except KeyError as error:
        raise UnsupportedPtx(f"type {kind} is not known", line, statement) from error


def parse(text: str) -> Program:
    """Parse the PTX of a module with exactly one entry.

    Raises:
        UnsupportedPtx: The module has no entry, several entries, device functions, or text that
            the parser does not understand.
    """
    text = _strip_comments(text)
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise UnsupportedPtx(f"{len(entries)} entries, expected one", 1)
    if match := re.search(r"\.func\b", text):
        raise UnsupportedPtx("device functions are not supported", _line(text, match.start()))
    parameters_end = text.find(")", entries[0].end())
    body = text.find("{", parameters_end)
    if min(parameters_end, body) < 0:
        raise UnsupportedPtx("the entry has no parameters or no body", _line(text, len(text)))
    program = Program(
        name=entries[0][1],
        target=_directive(text, r"\.target\s+(\w+)"),
        version=_directive(text, r"\.version\s+([\d.]+)"),
        parameters=_parameters(text[entries[0].end() : parameters_end], _line(text, body)),
        threads=_threads(text[parameters_end:body]),
        shared={},
        static_shared=0,
        dynamic_shared=None,
        registers={},
        instructions=[],
    )
    _declare_shared(program, text)
    _Body(program, text, body).parse()
    return program


def _strip_comments(text: str) -> str:
    """Blank out comments, keeping every line where it was."""
    text = re.sub(r"/\*.*?(?:\*/|\Z)", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _directive(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise UnsupportedPtx(f"no {pattern.split(chr(92))[1].strip('.')} directive", 1)
    return match[1]


def _parameters(text: str, line: int) -> list[Parameter]:
    parameters = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(
            rf"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.(?:global|shared)\s+)?"
            rf"(?:\.align\s+\d+\s+)?({_IDENTIFIER})(?:\[(\d{{1,9}})\])?",
            item,
        )
        if match is None:
            raise UnsupportedPtx("an unsupported parameter", line, item)
        size = int(match[3]) if match[3] else _width(match[1], line, item)
        parameters.append(Parameter(match[2], size, match[3] is not None))
    return parameters


def _threads(text: str) -> int | None:
    match = re.search(r"\.reqntid\s+(\d{1,9})(?:\s*,\s*(\d{1,9}))?(?:\s*,\s*(\d{1,9}))?", text)
    if match is None:
        return None
    return int(match[1]) * int(match[2] or 1) * int(match[3] or 1)


def _declare_shared(program: Program, text: str) -> None:
    """Lay out static shared variables; the dynamic array (of no size) follows them."""
    for match in _SHARED.finditer(text):
        align, kind, name, count = int(match[1] or 16), match[2], match[3], match[4]
        if count == "":
            program.dynamic_shared = name
            continue
        program.static_shared = -(-program.static_shared // align) * align
        program.shared[name] = program.static_shared
        line = _line(text, match.start())
        program.static_shared += _width(kind, line, match[0]) * int(count or 1)
        if program.static_shared > MOST_SHARED:
            raise UnsupportedPtx("more shared memory than any GPU has", line, match[0])
    if program.dynamic_shared is not None:
        program.static_shared = -(-program.static_shared // 16) * 16
        program.shared[program.dynamic_shared] = program.static_shared


class _Body:
    """A reader of the statements between the braces of an entry."""

    def __init__(self, program: Program, text: str, start: int) -> None:
        self.program = program
        self.text = text
        self.position = start + 1
        self.line = _line(text, self.position)
        self.scopes: list[dict[str, Register]] = [{}]
        self.scope_count = 0

    def parse(self) -> None:
        """Read statements until the closing brace."""
        while self.scopes:
            self._skip_space()
            if self.position >= len(self.text):
                raise UnsupportedPtx("the entry has no closing brace", self.line)
            character = self.text[self.position]
            if character == "{":
                self.scope_count += 1
                self.scopes.append({})
                self._advance(self.position + 1)
            elif character == "}":
                self.scopes.pop()
                self._advance(self.position + 1)
            elif match := _LABEL.match(self.text, self.position):
                if match[1] in self.program.labels:
                    raise UnsupportedPtx(f"label {match[1]} is defined twice", self.line)
                self.program.labels[match[1]] = len(self.program.instructions)
                self._advance(match.end())
            elif _LINE_DIRECTIVE.match(self.text, self.position):
                end = self.text.find("\n", self.position)
                self._advance(end if end >= 0 else len(self.text))
            else:
                self._statement()

    def _skip_space(self) -> None:
        match = re.compile(r"\s*").match(self.text, self.position)
        self._advance(match.end() if match else self.position)

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _statement(self) -> None:
        line = self.line
        end = self.text.find(";", self.position)
        if end < 0:
            raise UnsupportedPtx("a statement without an end", line)
        statement = re.sub(r"\s+", " ", self.text[self.position : end]).strip()
        self._advance(end + 1)
        if statement.startswith(".reg"):
            self._declare(statement, line)
        elif statement.startswith((".shared", ".extern")):
            return  # laid out by _declare_shared
        elif statement.startswith("."):
            raise UnsupportedPtx("an unsupported directive", line, statement)
        elif statement:
            self.program.instructions.append(self._instruction(statement, line))

    def _declare(self, statement: str, line: int) -> None:
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.+)", statement)
        if match is None:
            raise UnsupportedPtx("an unsupported register declaration", line, statement)
        width = _width(match[1], line, statement)
        for item in (part.strip() for part in match[2].split(",")):
            ranged = re.fullmatch(rf"({_IDENTIFIER})<(\d{{1,9}})>", item)
            if ranged is None and not re.fullmatch(_IDENTIFIER, item):
                raise UnsupportedPtx(f"{item} is not the name of a register", line, statement)
            if len(self.program.registers) + int(ranged[2] if ranged else 1) > MOST_REGISTERS:
                raise UnsupportedPtx(f"more than {MOST_REGISTERS} registers", line, statement)
            names = [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [item]
            for name in names:
                suffix = f"@{self.scope_count}" if len(self.scopes) > 1 else ""
                register = Register(name + suffix, width)
                self.scopes[-1][name] = register
                self.program.registers[register.name] = register

    def _instruction(self, statement: str, line: int) -> Instruction:
        guard, negated, rest = None, False, statement
        if match := re.match(rf"@(!?)({_IDENTIFIER})\s+", statement):
            negated = match[1] == "!"
            guard = self._register(match[2], line, statement)
            rest = statement[match.end() :]
        mnemonic, _, arguments = rest.partition(" ")
        opcode, *modifiers = mnemonic.split(".")
        operands = tuple(self._operand(item, line, statement) for item in _split(arguments))
        return Instruction(opcode, tuple(modifiers), operands, guard, negated, statement, line)

    def _find(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def _register(self, name: str, line: int, statement: str) -> Register:
        register = self._find(name)
        if register is None:
            raise UnsupportedPtx(f"{name} is not declared", line, statement)
        return register

    def _operand(self, item: str, line: int, statement: str) -> Operand:
        if item.startswith("{"):
            return Vector(
                tuple(
                    None if part == "_" else self._scalar(part, line, statement)
                    for part in _split(item[1:-1])
                )
            )
        if item.startswith("["):
            return self._address(item[1:-1].strip(), line, statement)
        if "|" in item:
            first, second = (part.strip() for part in item.split("|", 1))
            return Pair(
                self._register(first, line, statement), self._register(second, line, statement)
            )
        if (value := _immediate(item) or self._find(item)) is not None:
            return value
        if item.startswith("%"):
            return Special(item)
        if re.fullmatch(_IDENTIFIER, item):
            return Symbol(item)
        raise UnsupportedPtx(f"operand {item} is not supported", line, statement)

    def _scalar(self, item: str, line: int, statement: str) -> Register | Immediate:
        value = _immediate(item)
        return value if value is not None else self._register(item, line, statement)

    def _address(self, item: str, line: int, statement: str) -> Address:
        match = re.fullmatch(rf"({_IDENTIFIER})\s*(?:\+\s*(-?\w+))?", item)
        if match is None:
            value = _immediate(item)
            if value is None:
                raise UnsupportedPtx(f"address {item} is not supported", line, statement)
            return Address(None, value.bits)
        base = self._find(match[1]) or Symbol(match[1])
        offset = _immediate(match[2] or "0")
        if offset is None:
            raise UnsupportedPtx(f"address {item} is not supported", line, statement)
        return Address(base, offset.bits)


def _split(arguments: str) -> list[str]:
    """Split at commas outside braces and brackets."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(arguments):
        depth += character in "{["
        depth -= character in "}]"
        if character == "," and depth == 0:
            items.append(arguments[start:position].strip())
            start = position + 1
    last = arguments[start:].strip()
    return [*items, last] if last else items


def _immediate(item: str) -> Immediate | None:
    """Read a literal: integers, `0f`/`0d` bit patterns, decimal floats; None for anything else."""
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]{1,16}", item):
        return Immediate(int(item[2:], 16))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})U?", item):
        return Immediate(int(item.rstrip("U"), 0))
    if re.fullmatch(r"-?[0-9]+\.[0-9]*", item):
        return Immediate(0, float(item))
    return None
