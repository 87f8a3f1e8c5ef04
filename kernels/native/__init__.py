"""The native operators: a library in C that PyTorch, ONNX Runtime and OpenVINO call on a processor.

It is built where the package is built or installed, if a C compiler is there. Without it the
portable forms take over, which the first user of an operator is told.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

from uino_deploy.errors import Degraded

# The element types that the library computes, by ONNX's numbers.
TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}

_FOLDER = Path(__file__).parent


class Native(NamedTuple):
    """The loaded library.

    Attributes:
        path: its file, which is also an ONNX Runtime custom-operator library.
        library: as ctypes loads it; calls release Python's lock.
    """

    path: Path
    library: ctypes.CDLL

    @property
    def forms(self) -> list[str]:
        """The instruction sets that it has code for and this processor has, best first."""
        found: list[str] = []
        while name := self.library.uino_form(len(found)):
            found.append(name.decode())
        return found

    def correlation4d(
        self,
        dtype: str,
        operands: Sequence[int],
        shapes: Sequence[Sequence[int]],
        grid: tuple[int, int, int],
        threads: int,
    ) -> None:
        """Compute Correlation4d; see `correlation.naive` for the mathematics.

        Args:
            dtype: of all operands, one of `TYPES`.
            operands: addresses of query, support, weight and the result, each contiguous.
            shapes: of query, support and weight, which must fit together.
            grid: height, width and pool.
            threads: at most as many are used.

        Raises:
            MemoryError: there is no memory for the tokens of a layer.
        """
        query, support, weight = shapes
        height, width, pool = grid
        sizes = [query[0], support[0], weight[0], support[1], query[1], query[2]]
        sizes += [height, width, query[3], pool]
        self._call(self.library.uino_correlation4d, dtype, operands, sizes, threads)

    def selective_scan2d(
        self, dtype: str, operands: Sequence[int], shapes: Sequence[Sequence[int]], threads: int
    ) -> None:
        """Compute SelectiveScan2d; see `selective_scan.naive` for the mathematics.

        Args:
            dtype: of x, packed and y, one of `TYPES`; the other operands are float32.
            operands: addresses of x, packed, dt_weight, dt_bias, A, skip and y, each contiguous.
            shapes: of the first six, which must fit together.
            threads: at most as many are used.

        Raises:
            MemoryError: there is no memory for a sequence.
        """
        x, packed, weight, _, decays, _ = shapes
        sizes = [*x, packed[4], weight[2], decays[2]]
        self._call(self.library.uino_selective_scan2d, dtype, operands, sizes, threads)

    @staticmethod
    def _call(
        function: Any,
        dtype: str,
        operands: Sequence[int],
        sizes: Sequence[int],
        threads: int,
    ) -> None:
        addresses = [ctypes.c_void_p(address) for address in operands]
        counts = (ctypes.c_int64 * len(sizes))(*sizes)
        if function(TYPES[dtype], *addresses, counts, threads):
            raise MemoryError("no memory for a native operator")


@cache
def load() -> Native | str:
    """Return the library, or why there is none."""
    files = [_FOLDER / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return "it was not built: install the package again where a C compiler is"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"it cannot be loaded: {error}"
    library.uino_form.restype = ctypes.c_char_p
    return Native(path, library)


def loaded() -> Native | None:
    """Return the library; without it, warn once and return None.

    Warns:
        Degraded: the portable forms run instead.
    """
    native = load()
    if isinstance(native, Native):
        return native
    _announce(native)
    return None


@cache
def _announce(reason: str) -> None:
    warnings.warn(warning(reason), Degraded, stacklevel=3)


def warning(reason: str) -> str:
    """Return the line that says why the portable forms run."""
    return f"no native operators, so the slower portable forms run: {reason}"


def describe(native: Native | None) -> str:
    """Say which form of the operators a backend runs: the library's, or the portable one."""
    return "portable" if native is None else f"native, {native.forms[0]}"
