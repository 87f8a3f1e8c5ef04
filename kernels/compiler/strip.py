"""Removal of Triton's hidden trailing parameters from a kernel, after proving them unused.

Triton appends the addresses of two scratch buffers to every kernel. TensorRT's ahead-of-time
plugins pass only what was declared, so a kernel may be shipped only if it reads neither.
"""

from __future__ import annotations

import re
from typing import Any

from uino_deploy.errors import BuildError

# Needs that a launch by grid, block, shared memory and arguments alone cannot meet.
_NEEDS = {
    "global_scratch_size": 0,
    "profile_scratch_size": 0,
    "num_ctas": 1,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
}
_ENTRY = re.compile(r"(\.visible \.entry (\w+)\()(.*?)(\n\))", re.DOTALL)
_HIDDEN = re.compile(r"\s*\.param \.u64 (?:\.ptr \.global \.align \d+ )?(\w+)")


def strip_hidden(ptx: str, metadata: dict[str, Any], parameters: int) -> str:
    """Return the PTX with an entry that has exactly `parameters` parameters.

    Args:
        ptx: a module as Triton writes it.
        metadata: Triton's metadata of the kernel.
        parameters: how many parameters the kernel declares.

    Raises:
        BuildError: the kernel needs scratch memory, clusters or a special launch, reads a hidden
            parameter, or does not have the form that Triton 3.4 to 3.9 write.
    """
    for key, harmless in _NEEDS.items():
        if metadata.get(key, harmless) != harmless:
            raise BuildError(f"kernel {metadata['name']} needs {key} = {metadata[key]}")
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise BuildError(f"kernel {metadata['name']}: {len(entries)} entries in the PTX, not 1")
    entry = entries[0]
    declared = entry[3].split(",")
    body = ptx[entry.end() :]
    for hidden in declared[parameters:]:
        match = _HIDDEN.fullmatch(hidden)
        if match is None:
            raise BuildError(f"kernel {entry[2]}: {hidden.strip()!r} is not a scratch address")
        if re.search(rf"(?<![\w$]){re.escape(match[1])}(?![\w$])", body):
            raise BuildError(f"kernel {entry[2]} reads its hidden parameter {match[1]}")
    if len(declared) - parameters not in (0, 1, 2):
        raise BuildError(f"kernel {entry[2]} has {len(declared)} parameters, expected {parameters}")
    return ptx[: entry.start(3)] + ",".join(declared[:parameters]) + ptx[entry.end(3) :]
