"""A folder of compiled kernels as the plugins read it: which kernel to launch, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import BuildError
from uino_deploy.inputs import read_regular
from uino_deploy.kernels.correlation import plugin as correlation
from uino_deploy.kernels.epilogue import plugin as epilogue
from uino_deploy.kernels.mlp import plugin as norm_mlp
from uino_deploy.kernels.plugins.operator import Attributes, Operator, Parameter, Shapes
from uino_deploy.kernels.prologue import plugin as prologue
from uino_deploy.kernels.selective_scan import plugin as selective_scan

Read = Callable[[Path], bytes]

# In the order in which a model calls them first.
OPERATORS = {
    room.OPERATOR.name: room.OPERATOR
    for room in (correlation, prologue, selective_scan, epilogue, norm_mlp)
}


class Record(msgspec.Struct, frozen=True):
    """The fields that plugins read from a kernel's JSON file; `kernels build` writes more."""

    name: str
    op: str
    config: str
    arch: str
    dtype: str
    entry: str
    shared_bytes: int
    parameters: list[Parameter]
    constants: dict[str, Any]
    block: tuple[int, int, int]
    plugin: bool
    ptx_sha256: str
    cubin_sha256: str
    # Of the ptxas that made the cubin; older folders do not say.
    assembler: str = ""
    elf_abi: int = 0


class _Index(msgspec.Struct):
    kernels: list[str]


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel on disk."""

    record: Record
    folder: Path

    def ptx(self) -> str:
        """Return the PTX.

        Raises:
            BuildError: the file is missing or not the one that was built.
        """
        return self._read(".ptx", self.record.ptx_sha256).decode()

    def cubin(self) -> bytes:
        """Return the cubin.

        Raises:
            BuildError: the file is missing or not the one that was built.
        """
        return self._read(".cubin", self.record.cubin_sha256)

    def _read(self, suffix: str, expected: str) -> bytes:
        path = self.folder / f"{self.record.name}{suffix}"
        content = _content(path)
        if hashlib.sha256(content).hexdigest() != expected:
            raise BuildError(f"{path} has changed since it was built", _REBUILD)
        return content


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, and its int32 arguments between inputs and outputs."""

    kernel: Kernel
    grid: tuple[int, int, int]
    scalars: list[int]

    @property
    def threads(self) -> int:
        """The threads of a block, which is one-dimensional."""
        return self.kernel.record.block[0]


_MOST_BYTES = 256 << 20  # of a kernel's file
_REBUILD = "run `uino-deploy kernels build` again"


class Library:
    """The kernels of one architecture."""

    def __init__(self, folder: Path, architecture: str, kernels: list[Kernel]) -> None:
        """Index kernels by what they compute; `open` reads them from a folder."""
        self.folder, self.architecture, self.kernels = folder, architecture, kernels
        self._kernels = {(k.record.op, k.record.config, k.record.dtype): k for k in kernels}

    @classmethod
    def open(cls, folder: Path, architecture: str, read: Read | None = None) -> Library:
        """Read a folder written by `uino-deploy kernels build`.

        Args:
            folder: the folder.
            architecture: such as "sm_87".
            read: returns the checked bytes of a JSON file in it, which holds the hashes of the
                code; None to take the folder as it is.

        Raises:
            BuildError: it is not a kernels folder, has nothing for the architecture, or its kernels
                take other arguments than this version's plugins pass.
        """
        names = _decode(folder / "kernels.json", _Index, read or _content).kernels
        kernels = [_kernel(folder, name, read or _content) for name in names]
        wanted = [kernel for kernel in kernels if kernel.record.arch == architecture]
        if not wanted:
            have = ", ".join(sorted({k.record.arch for k in kernels})) or "nothing"
            raise BuildError(
                f"{folder} has no kernels for {architecture}, it has {have}",
                f"uino-deploy kernels build --arch {architecture} -o DIR",
            )
        return cls(folder, architecture, wanted)

    def find(
        self, operator: Operator, attributes: Attributes, shapes: Shapes, dtype: str
    ) -> Kernel:
        """Return the best kernel for an operator's attributes, its inputs' shapes and type.

        Raises:
            BuildError: the folder has no such kernel.
        """
        configs = operator.configurations(attributes, shapes)
        for config in configs:
            kernel = self._kernels.get((operator.kernel, config, dtype))
            if kernel is not None:
                return kernel
        raise BuildError(
            f"{self.folder} has no kernel {operator.kernel} {' or '.join(configs)} in {dtype} for "
            f"{self.architecture}",
            "build the kernels of the model's own preset, or the engine without plugins",
        )

    def launch(
        self, operator: Operator, attributes: Attributes, shapes: Shapes, dtype: str
    ) -> Launch:
        """Return how to compute an operator for concrete shapes.

        Raises:
            BuildError: no kernel can, or the shapes do not fit together.
        """
        scalars = operator.numbers(attributes, shapes)
        kernel = self.find(operator, attributes, shapes, dtype)
        grid = operator.blocks(attributes, kernel.record.constants, shapes)
        return Launch(kernel, grid, scalars)


def _kernel(folder: Path, name: str, read: Read) -> Kernel:
    if Path(name).name != name or "\0" in name:
        raise BuildError(f"{folder / 'kernels.json'} names {name!r}, which is not a file beside it")
    record = _decode(folder / f"{name}.json", Record, read)
    for operator in OPERATORS.values():
        if operator.kernel == record.op and operator.parameters(record.dtype) != record.parameters:
            raise BuildError(
                f"{folder / name}.json: its kernel takes other arguments than this version passes",
                _REBUILD,
            )
    return Kernel(record, folder)


T = Any


def _decode(path: Path, kind: type[T], read: Read) -> T:
    try:
        return decode_json(read(path), kind)
    except DocumentError as error:
        raise BuildError(f"{path} is not what `kernels build` writes: {error}", _REBUILD) from error


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, "kernel", _MOST_BYTES)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}", _REBUILD) from error
