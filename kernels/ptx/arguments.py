"""Kernel arguments as the bytes that a launch passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.kernels.ptx.memory import GlobalMemory, Output
from uino_deploy.kernels.ptx.parser import Program


def bind(program: Program, arguments: Sequence[object], memory: GlobalMemory) -> dict[str, bytes]:
    """Return each parameter's bytes as a launch would pass them."""
    if len(arguments) != len(program.parameters):
        raise InputError(
            f"{program.name} takes {len(program.parameters)} arguments, {len(arguments)} were given"
        )
    bound = {}
    for position, (parameter, value) in enumerate(zip(program.parameters, arguments, strict=True)):
        raw = _bytes_of(value, parameter.size, position, memory)
        if raw is None or len(raw) != parameter.size:
            raise InputError(
                f"argument {position} of {program.name} has {parameter.size} bytes;"
                f" a {type(value).__name__} does not fit"
            )
        bound[parameter.name] = raw
    return bound


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
