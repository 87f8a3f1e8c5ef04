"""Small PTX programs around one instruction, and their execution."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from uino_deploy import ptx

LANES = 32
_REGISTERS = {1: ("pred", "p"), 2: ("b16", "rs"), 4: ("b32", "r"), 8: ("b64", "rd")}


def program_text(body: str, parameters: int, threads: int = LANES, shared: str = "") -> str:
    """Return a module with one entry `k`: pointers %rd0.. are loaded, %r0 is the thread."""
    declared = ",\n".join(
        f".param .u64 .ptr .global .align 1 k_param_{i}" for i in range(parameters)
    )
    loads = "\n".join(f"ld.param.b64 %rd{i}, [k_param_{i}];" for i in range(parameters))
    return f""".version 8.5
.target sm_80
.address_size 64
{shared}
.visible .entry k(
{declared}
)
.reqntid {threads}
{{
.reg .pred %p<40>;
.reg .b16 %rs<40>;
.reg .b32 %r<80>;
.reg .b64 %rd<80>;
{loads}
mov.u32 %r0, %tid.x;
{body}
ret;
}}
"""


def _name(width: int, index: int) -> str:
    return f"%{_REGISTERS[width][1]}{index}"


@pytest.fixture(scope="session")
def assemble() -> Callable[..., str]:
    """The text of a program: see `program_text`."""
    return program_text


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., np.ndarray]:
    """Run one instruction for each element of its sources.

    `evaluate("add.f32 {d}, {0}, {1};", np.float32, a, b)` gives the results as float32; sources
    of dtype bool become predicates.
    """

    def run(instruction: str, result: type, *sources: np.ndarray) -> np.ndarray:
        count = len(sources[0])
        threads = -(-count // LANES) * LANES
        lines, names = [], []
        for i, source in enumerate(sources):
            width = source.dtype.itemsize
            wide = max(width, 2)
            lines.append(f"mad.wide.u32 %rd{20 + i}, %r0, {wide}, %rd{i};")
            lines.append(f"ld.global.b{8 * wide} {_name(wide, 40 - 1 - i)}, [%rd{20 + i}];")
            names.append(_name(wide, 40 - 1 - i))
            if source.dtype == np.bool_:
                lines.append(f"setp.ne.b16 %p{30 + i}, {names[-1]}, 0;")
                names[-1] = f"%p{30 + i}"
        width = max(np.dtype(result).itemsize, 2)
        is_predicate = np.dtype(result) == np.bool_
        target = "%p1" if is_predicate else _name(width, 10)
        lines.append(re.sub(r"\{d\}", target, instruction.replace("{{", "{").replace("}}", "}")))
        for i, name in enumerate(names):
            lines[-1] = lines[-1].replace(f"{{{i}}}", name)
        if is_predicate:
            lines.append("selp.b16 %rs10, 1, 0, %p1;")
        lines.append(f"mad.wide.u32 %rd40, %r0, {width}, %rd{len(sources)};")
        lines.append(f"st.global.b{8 * width} [%rd40], {_name(width, 10)};")
        text = program_text("\n".join(lines), len(sources) + 1, threads)
        padded = []
        for source in sources:
            bits = source.astype(np.uint16) if source.dtype == np.bool_ else source
            padded.append(np.concatenate([bits, np.zeros(threads - count, dtype=bits.dtype)]))
        storage = np.uint16 if is_predicate else result
        out = ptx.poisoned(threads, storage)
        ptx.launch(ptx.parse(text), (1, 1, 1), threads, 0, [*padded, out])
        return out.array[:count].astype(result) if is_predicate else out.array[:count]

    return run


@pytest.fixture
def random() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(7)
