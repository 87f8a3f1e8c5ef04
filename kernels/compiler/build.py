"""A folder of kernels: PTX, cubin and a JSON file for each variant and target."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy.child import Child, ChildFailed
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.documents import decode_json
from uino_deploy.errors import BuildError, InputError
from uino_deploy.inputs import read_regular
from uino_deploy.kernels.compiler.targets import Target
from uino_deploy.workspace import work_folder

if TYPE_CHECKING:  # it imports Triton
    from uino_deploy.kernels.compiler.variants import Variant

# The limit of a launch without an opt-in attribute; whether TensorRT's plugins opt in is unknown.
PLUGIN_SHARED_BYTES = 49152
_MOST_BYTES = 256 << 20  # of a kernel's file


@dataclass(frozen=True)
class Compiled:
    """One variant for one target; `record` is the content of its JSON file."""

    name: str
    ptx: str
    cubin: bytes
    record: dict[str, Any]


def compile_target(
    target: Target, presets: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> list[Compiled]:
    """Compile the variants that presets need on one target, in a separate process.

    Args:
        target: architecture and CUDA release.
        presets: the models; all of them if None.
        names: the variants (`Variant.name`); all those of the presets if None.

    Raises:
        BuildError: a variant could not be compiled, or cannot be launched by a plugin.
    """
    return compile_models(target, [UinoConfig.from_preset(p) for p in presets or PRESETS], names)


def compile_models(
    target: Target, configs: Sequence[UinoConfig], names: Sequence[str] | None = None
) -> list[Compiled]:
    """Compile the variants that models need, as `compile_target` does for presets."""
    from uino_deploy.kernels.compiler.variants import model_variants

    wanted = model_variants(configs, target.capability)
    return compile_variants(target, [v for v in wanted if names is None or v.name in names])


def compile_variants(target: Target, variants: Sequence[Variant]) -> list[Compiled]:
    """Compile these variants, as `compile_target` does for presets."""
    named = {variant.name: variant for variant in variants}
    request = {
        "arch": target.arch,
        "cuda": target.cuda,
        "variants": [asdict(variant) for variant in variants],
    }
    compiled = []

    def keep(result: dict[str, Any]) -> None:
        compiled.append(_compiled(named[result.pop("name")], result, target))

    with work_folder(None, "uino-kernels") as cache:
        try:
            with Child(
                "uino_deploy.kernels.compiler.worker:compile_all", _environment(str(cache))
            ) as c:
                c.ask(request, keep)
        except ChildFailed as error:
            raise BuildError(f"compiling for {target.arch}: its process {error}") from error
    return compiled


def _environment(cache: str) -> dict[str, str]:
    """Return the compiler's variables: the same PTX on every machine."""
    environment = os.environ | {
        # A separate cache: an older source's kernel in the user's cache would pass for this one.
        "TRITON_CACHE_DIR": cache,
        # Line tables would carry this machine's paths into what we ship.
        "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    environment.pop("TRITON_INTERPRET", None)
    return environment


def _compiled(variant: Variant, result: dict[str, Any], target: Target) -> Compiled:
    """Combine the compiler process's results with the variant's own values.

    Raises:
        BuildError: the variant could not be compiled.
    """
    if "error" in result:
        raise BuildError(f"{variant.name} for {target.arch}: {result['error']}")
    ptx, cubin = result.pop("ptx"), base64.b64decode(result.pop("cubin"))
    record = {
        "name": f"{variant.name}-{target.arch}",
        "op": variant.op,
        "config": variant.config,
        "arch": target.arch,
        "dtype": variant.dtype,
        **result,
        "parameters": [asdict(parameter) for parameter in variant.parameters],
        "constants": variant.constants,
        "warps": variant.warps,
        "stages": variant.stages,
        "block": [variant.warps * 32, 1, 1],
        "plugin": result["shared_bytes"] <= PLUGIN_SHARED_BYTES,
        "cuda": target.cuda,
        "triton": version("triton"),
        "elf_abi": elf_abi(cubin),
        "ptx_sha256": hashlib.sha256(ptx.encode()).hexdigest(),
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
    }
    return Compiled(record["name"], ptx, cubin, record)


def elf_abi(cubin: bytes) -> int:
    """Return a cubin's ELF ABI version (EI_ABIVERSION): 7 of a ptxas of CUDA 12, 8 of 13.4."""
    return cubin[8]


def write(compiled: list[Compiled], folder: Path) -> None:
    """Write `<name>.ptx`, `<name>.cubin` and `<name>.json` for each, and `kernels.json` for all."""
    for kernel in compiled:
        (folder / f"{kernel.name}.ptx").write_text(kernel.ptx)
        (folder / f"{kernel.name}.cubin").write_bytes(kernel.cubin)
        (folder / f"{kernel.name}.json").write_text(_json(kernel.record))
    (folder / "kernels.json").write_text(_json({"kernels": sorted(k.name for k in compiled)}))


def read(folder: Path) -> list[Compiled]:
    """Read what `write` wrote.

    Raises:
        InputError: the folder holds no kernels, or a file in it was changed.
    """
    try:
        names = decode_json(_content(folder / "kernels.json"), dict[str, list[str]])["kernels"]
        kernels = [_read_one(folder, name) for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} contains no readable kernels: {error}",
            "write it with `uino-deploy kernels build`",
        ) from error
    return kernels


def _content(path: Path) -> bytes:
    return read_regular(path, "kernel", _MOST_BYTES)


def _read_one(folder: Path, name: str) -> Compiled:
    record = decode_json(_content(folder / f"{name}.json"), dict[str, Any])
    ptx, cubin = _content(folder / f"{name}.ptx"), _content(folder / f"{name}.cubin")
    for kind, data in (("ptx", ptx), ("cubin", cubin)):
        if hashlib.sha256(data).hexdigest() != record[f"{kind}_sha256"]:
            raise ValueError(f"{name}.{kind} is not the file that its JSON describes")
    return Compiled(name, ptx.decode(), cubin, record)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
