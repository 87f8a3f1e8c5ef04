"""Instruction counts from a cubin's machine code: of all of it, and of its loop."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import triton

from uino_deploy.errors import BuildError
from uino_deploy.workspace import work_folder

_LINE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P[\dT]+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_CLASSES = {
    "tensor_core": re.compile(r"(HMMA|IMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTCMMA|WARPGROUP\.MMA)"),
    "load_16_bytes": re.compile(r"LDG\.\S*128"),
    "store_16_bytes": re.compile(r"STG\.\S*128"),
    "async_copy_16_bytes": re.compile(r"LDGSTS\.\S*128"),
    "async_copy": re.compile(r"(LDGSTS|UBLKCP|UTMALDG)"),
    "load_2_bytes": re.compile(r"LDG\.\S*[US]16"),
    "special_function": re.compile(r"MUFU"),
    "shared_load": re.compile(r"LDS"),
    "shuffle": re.compile(r"SHFL"),
    "barrier": re.compile(r"BAR\.SYNC"),
    "local": re.compile(r"(LDL|STL)"),
}
# A shorter backward jump waits for something, or clears a few registers.
_LEAST_LOOP = 32


def instruction_mix(cubin: bytes) -> dict[str, int]:
    """Return the number of instructions of each class in the code, and of all, as `total`.

    Raises:
        BuildError: the disassembler refuses the cubin.
    """
    return _mix([name for name, _ in _code(cubin)[0]])


def loop_mix(cubin: bytes) -> dict[str, int]:
    """Return the same of the longest innermost loop; zeros if the code has none.

    Raises:
        BuildError: the disassembler refuses the cubin.
    """
    code, labels = _code(cubin)
    spans = []
    for end, (name, operands) in enumerate(code):
        goal = re.search(r"\.L_x_\d+", operands) if name.startswith("BRA") else None
        start = end if goal is None else labels.get(goal[0], end)
        if end - start >= _LEAST_LOOP:
            spans.append((start, end + 1))
    # Sorted by their ends, a loop that holds another comes right after one that it holds.
    spans.sort(key=lambda span: (span[1], -span[0]))
    holds_another = {outer for inner, outer in pairwise(spans) if outer[0] <= inner[0]}
    innermost = [span for span in spans if span not in holds_another]
    start, end = max(innermost, key=lambda span: span[1] - span[0], default=(0, 0))
    return _mix([name for name, _ in code[start:end]])


def _mix(names: list[str]) -> dict[str, int]:
    mix = {kind: sum(map(bool, map(p.match, names))) for kind, p in _CLASSES.items()}
    return mix | {"total": len(names)}


def _code(cubin: bytes) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Return the instructions with their operands, and the position of each label."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in _disassembly(cubin).splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := _LINE.match(line):
            code.append((instruction[1], instruction[2]))
    return code, labels


def _disassembly(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with work_folder(None, "uino-disassembly") as folder:
        file = folder / "k.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-c", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"nvdisasm: {done.stderr.strip()[:200]}")
    return done.stdout
