"""Loading and launching of cubins through cuda-python, on a given stream.

Loading happens before any CUDA graph capture; launching neither allocates nor waits.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from uino_deploy.dependencies import install_command
from uino_deploy.errors import BuildError, DependencyError
from uino_deploy.kernels.plugins.library import Kernel, Launch

# More dynamic shared memory than this must be requested for each function.
_PLAIN_SHARED_BYTES = 49152

# ELF ABI version of a cubin -> the oldest driver that takes it, as CUDA writes versions. 8 comes
# from a ptxas of CUDA 13: driver 580.159.04 (CUDA 13.0) of an H200 takes it, those of CUDA 12 are
# older than it.
_OLDEST_DRIVER = {8: 13000}

# (context, cubin's SHA-256) -> function. Modules stay loaded: engines share and outlive them.
_functions: dict[tuple[int, str], Any] = {}


@cache
def bindings() -> Any:
    """Return cuda-python's module of the CUDA driver.

    Raises:
        DependencyError: cuda-python is not installed.
    """
    # The module's name since 12.6, and before.
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DependencyError("cuda-python is not installed", install_command("tensorrt"))


def check_driver(kernels: Sequence[Kernel]) -> None:
    """Refuse cubins that the machine's driver is too old for.

    Nothing falls back to the PTX, which the driver would compile into other code than was proved.

    Raises:
        DependencyError: with the assembler, the ABI and the driver.
    """
    driver = bindings()
    for record in (kernel.record for kernel in kernels):
        oldest = _OLDEST_DRIVER.get(record.elf_abi, 0)
        status, here = driver.cuDriverGetVersion() if oldest else (0, 0)
        if not int(status) and here < oldest:
            raise DependencyError(
                f"{record.name}: its cubin is of ELF ABI {record.elf_abi} (ptxas "
                f"{record.assembler}), and the driver here is of CUDA {_release(here)}",
                f"install a driver of CUDA {_release(oldest)} or newer, or compile the kernels "
                "with a Triton that assembles with CUDA 12 (3.6 for sm_90)",
            )


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def load(kernel: Kernel) -> Any:
    """Return a kernel's function in the current CUDA context, loading its cubin the first time.

    Raises:
        BuildError: the file has changed, or the driver refuses it.
        DependencyError: the driver is too old for it.
    """
    driver = bindings()
    check_driver([kernel])
    context = int(_checked(driver.cuCtxGetCurrent(), kernel))
    key = context, kernel.record.cubin_sha256
    if key not in _functions:
        module = _checked(driver.cuModuleLoadData(kernel.cubin()), kernel)
        entry = kernel.record.entry.encode()
        function = _checked(driver.cuModuleGetFunction(module, entry), kernel)
        if kernel.record.shared_bytes > _PLAIN_SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            done = driver.cuFuncSetAttribute(function, attribute, kernel.record.shared_bytes)
            _checked(done, kernel)
        _functions[key] = function
    return _functions[key]


def run(
    function: Any, launch: Launch, inputs: Sequence[int], outputs: Sequence[int], stream: int
) -> None:
    """Put one launch on a stream.

    Args:
        function: what `load` returned.
        launch: grid and int32 arguments.
        inputs: device addresses, in the operator's order.
        outputs: device addresses.
        stream: the CUDA stream's handle.

    Raises:
        BuildError: the driver refuses the launch.
    """
    # Eight bytes for each argument: a kernel reads the lower four of an int32.
    values = np.array([*inputs, *launch.scalars, *outputs], dtype="<u8")
    addresses = values.ctypes.data + 8 * np.arange(len(values), dtype="<u8")
    done = bindings().cuLaunchKernel(
        function,
        *launch.grid,
        *launch.kernel.record.block,
        launch.kernel.record.shared_bytes,
        stream,
        addresses.ctypes.data,
        0,
    )
    _checked(done, launch.kernel)


def _checked(result: tuple[Any, ...], kernel: Kernel) -> Any:
    """Return a driver call's results without its status."""
    status, *values = result
    if int(status):
        raise BuildError(f"{kernel.record.name}: the CUDA driver returns {status.name}")
    return values[0] if values else None
