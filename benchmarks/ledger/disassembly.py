"""Instruction counts from a cubin's machine code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton

from uino_deploy.errors import BuildError
from uino_deploy.workspace import work_folder

_LINE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P[\dT]+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_CLASSES = {
    "tensor_core": re.compile(r"(HMMA|IMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTCMMA|WARPGROUP\.MMA)"),
    "load_16_bytes": re.compile(r"LDG\.\S*128"),
    "store_16_bytes": re.compile(r"STG\.\S*128"),
    "async_copy_16_bytes": re.compile(r"LDGSTS\.\S*128"),
    "async_copy": re.compile(r"(LDGSTS|UBLKCP|UTMALDG)"),
    "special_function": re.compile(r"MUFU"),
    "shared_load": re.compile(r"LDS"),
    "shuffle": re.compile(r"SHFL"),
    "barrier": re.compile(r"BAR\.SYNC"),
    "local": re.compile(r"(LDL|STL)"),
}


def instruction_mix(cubin: bytes) -> dict[str, int]:
    """Return the number of instructions of each class in the code, and of all, as `total`.

    Raises:
        BuildError: the disassembler refuses the cubin.
    """
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with work_folder(None, "uino-disassembly") as folder:
        file = folder / "k.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-c", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"nvdisasm: {done.stderr.strip()[:200]}")
    names = _LINE.findall(done.stdout)
    mix = {kind: sum(map(bool, map(p.match, names))) for kind, p in _CLASSES.items()}
    return mix | {"total": len(names)}
