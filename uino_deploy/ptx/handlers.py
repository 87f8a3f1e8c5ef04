"""Handlers: from a machine's state and an instruction to the action it performs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from uino_deploy.ptx.errors import UnsupportedPtx
from uino_deploy.ptx.floats import Array
from uino_deploy.ptx.lanes import Lanes
from uino_deploy.ptx.memory import GlobalMemory
from uino_deploy.ptx.parser import Instruction, Program, width_of
from uino_deploy.ptx.registers import Action, Registers
from uino_deploy.ptx.shared import SharedMemory


class State(Protocol):
    """The state that instructions read and change; `Machine` provides it to the handlers."""

    program: Program
    parameters: dict[str, bytes]
    lanes: Lanes
    registers: Registers
    memory: GlobalMemory
    shared: SharedMemory


Handler: TypeAlias = Callable[[State, Instruction, Array | None], Action]
"""Binds an instruction to the rows it works on, for all lanes (None) or those of a mask."""


def kind_of(instruction: Instruction, allowed: frozenset[str] | set[str]) -> tuple[str, set[str]]:
    """Return an instruction's type (its last modifier) and its other modifiers.

    Raises:
        UnsupportedPtx: A modifier outside `allowed`, or no type.
    """
    if not instruction.modifiers:
        raise unsupported(instruction)
    *others, kind = instruction.modifiers
    try:
        width_of(kind)
    except KeyError:
        raise unsupported(instruction) from None
    if unknown := set(others) - allowed:
        raise unsupported(instruction, f"modifier .{min(unknown)}")
    return kind, set(others)


def unsupported(instruction: Instruction, what: str = "") -> UnsupportedPtx:
    """Return the refusal of an instruction, or of `what` about it if given."""
    reason = f"{what} of {instruction.name}" if what else f"instruction {instruction.name}"
    return UnsupportedPtx(f"{reason} is not supported", instruction.line, instruction.text)
