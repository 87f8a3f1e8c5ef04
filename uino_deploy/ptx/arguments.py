"""Kernel arguments, laid out as the bytes that a launch passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.ptx.memory import GlobalMemory, Output
from uino_deploy.ptx.parser import Program


class Struct:
    """A struct passed by value, each member at its natural alignment.

    Members are numpy scalars of their C types, arrays and `Output`s for pointers, None for a null
    pointer.
    """

    def __init__(self, *members: object) -> None:
        self.members = members


def flat(arguments: Sequence[object]) -> Iterator[object]:
    """Yield the arguments, with each struct replaced by its members, in the order of positions."""
    for argument in arguments:
        if isinstance(argument, Struct):
            yield from argument.members
        else:
            yield argument


def bind(program: Program, arguments: Sequence[object], memory: GlobalMemory) -> dict[str, bytes]:
    """Return each parameter's bytes as a launch would pass them."""
    if len(arguments) != len(program.parameters):
        raise InputError(
            f"{program.name} takes {len(program.parameters)} arguments, {len(arguments)} were given"
        )
    bound = {}
    position = 0
    for parameter, value in zip(program.parameters, arguments, strict=True):
        if isinstance(value, Struct):
            raw: bytes | None = _packed(value, position, memory)
            position += len(value.members)
        else:
            raw = _bytes_of(value, parameter.size, position, memory)
            position += 1
        if raw is None or len(raw) != parameter.size:
            raise InputError(
                f"argument {parameter.name} of {program.name} has {parameter.size} bytes;"
                f" a {type(value).__name__} does not fit"
            )
        bound[parameter.name] = raw
    return bound


def _packed(value: Struct, position: int, memory: GlobalMemory) -> bytes:
    """Lay out a struct as C does: members aligned to their size, the whole to the largest."""
    raw, largest = b"", 1
    for index, member in enumerate(value.members):
        size = member.itemsize if isinstance(member, np.generic) else 8
        part = member.tobytes() if isinstance(member, np.generic) else None
        part = part or _bytes_of(member, size, position + index, memory)
        if part is None:
            raise InputError(f"a struct cannot hold a {type(member).__name__}")
        raw += bytes(-len(raw) % size) + part
        largest = max(largest, size)
    return raw + bytes(-len(raw) % largest)


def _bytes_of(value: object, size: int, position: int, memory: GlobalMemory) -> bytes | None:
    raw: bytes | None = None
    if isinstance(value, np.ndarray | Output):
        raw = memory.address(position).to_bytes(8, "little")
    elif value is None:
        raw = bytes(size)
    elif isinstance(value, bytes):
        raw = value
    elif isinstance(value, int | np.integer):
        number = int(value)
        if number.bit_length() + (number < 0) <= 8 * size:
            raw = number.to_bytes(size, "little", signed=number < 0)
    elif isinstance(value, float | np.floating):
        raw = np.array(value, dtype=f"f{size}").tobytes()
    return raw
