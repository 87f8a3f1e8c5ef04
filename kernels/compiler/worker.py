"""The compilation of variants for one target; `uino_deploy.child` runs `compile_all`.

LLVM ends the process on a target that it does not support, so the builder must not share it.
"""

from __future__ import annotations

import base64
import re
import subprocess
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from uino_deploy.child import Note
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.strip import strip_hidden
from uino_deploy.kernels.compiler.targets import DTYPES, Target, isa_for
from uino_deploy.kernels.compiler.variants import Variant
from uino_deploy.kernels.plugins.operator import Parameter
from uino_deploy.workspace import work_folder

_USAGE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def source(kernel: Any, parameters: list[Parameter], constants: dict[str, Any]) -> Any:
    """Return what `triton.compile` takes for a kernel with these parameters and constants."""
    signature = {p.name: ("*" + DTYPES[p.type]) if p.pointer else "i32" for p in parameters}
    signature |= dict.fromkeys(constants, "constexpr")
    hints = {
        (i,): [["tt.divisibility", p.divisible_by]]
        for i, p in enumerate(parameters)
        if p.divisible_by > 1
    }
    return ASTSource(kernel, signature, constants, hints)


def compile_variant(variant: Variant, target: Target) -> dict[str, Any]:
    """Return the stripped PTX, the cubin that ptxas makes of it, and their metadata.

    Raises:
        BuildError: the kernel cannot be launched with only its declared parameters, or ptxas
            refuses the stripped PTX.
    """
    isa = isa_for(target, str(get_ptxas(target.capability).version))
    compiled: Any = triton.compile(
        source(variant.kernel, variant.parameters, variant.constants),
        target=GPUTarget("cuda", target.capability, 32),
        options={
            "num_warps": variant.warps,
            "num_stages": variant.stages,
            "ptx_version": isa,
            "enable_fp_fusion": True,
        },
    )
    metadata = compiled.metadata._asdict()
    ptx = strip_hidden(compiled.asm["ptx"], metadata, len(variant.parameters))
    cubin, usage = assemble(ptx, target)
    return {
        "entry": metadata["name"],
        "shared_bytes": metadata["shared"],
        "ptx_isa": isa / 10,
        "ptx": ptx,
        "cubin": base64.b64encode(cubin).decode(),
        **usage,
    }


def assemble(ptx: str, target: Target) -> tuple[bytes, dict[str, Any]]:
    """Return the cubin and the resources (registers, spills, stack) that ptxas reports.

    Raises:
        BuildError: ptxas refuses the PTX.
    """
    accelerated = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert accelerated is not None
    tool = get_ptxas(target.capability)
    with work_folder(None, "uino-ptxas") as folder:
        text, binary = folder / "k.ptx", folder / "k.cubin"
        text.write_text(ptx)
        command = [tool.path, "-v", f"-arch={accelerated[1]}", str(text), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"ptxas refused the stripped PTX: {done.stderr.strip()[:300]}")
        cubin = binary.read_bytes()
    frame, stores, loads = map(int, _one(_USAGE, done.stderr))
    (registers,) = _one(re.compile(r"Used (\d+) registers"), done.stderr)
    return cubin, {
        "registers": int(registers),
        "spill_bytes": stores + loads,
        "local_bytes": frame,
        "ptx_target": accelerated[1],
        "assembler": str(tool.version),
    }


def _one(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    match = pattern.search(text)
    if match is None:
        raise BuildError("ptxas reported no resources for the kernel")
    return match.groups()


def compile_all(request: dict[str, Any], note: Note) -> None:
    """Compile the variants of {"arch", "cuda", "variants"}; send a note of each."""
    target = Target(request["arch"], request["cuda"])
    for variant in (Variant(**fields) for fields in request["variants"]):
        try:
            result = compile_variant(variant, target)
        except BuildError as error:
            result = {"error": str(error)}
        note({"name": variant.name, **result})
