"""The stand-in for the card in a rehearsal, and the faults planted in it.

The driver replaces cuda-python's own: functions, results and attributes have the names of
`cuda.bindings.driver`, to which test_first_light.py holds them. Device memory is host memory; a
launch decodes the argument block as the driver would and runs the kernel in the project's PTX
executor, which faults on every access outside an array. This rehearses everything that the card's
first launch needs: module, parameters, packing, grid, shapes.

A planted fault shows that a step would report it: `wrong` results, a CUDA `fault`, a `hang`, or a
`missing` module.
"""

from __future__ import annotations

import ctypes
import enum
import os
import sys
import time
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_MOST_SHARED = 49152  # the limit for a launch without an opt-in
_FOR_EVER = 86_400


def planted() -> str | None:
    """Return the kind of fault that this rehearsal plants."""
    return os.environ.get("FIRST_LIGHT_PLANT")


class Result(enum.IntEnum):
    """The few results that callers look at."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


OK = Result.CUDA_SUCCESS


class Driver:
    """The part of `cuda.bindings.driver` that `first_light` and the project's launcher use."""

    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_NUM_REGS=4,
        CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES=3,
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
    )

    def __init__(self, folders: list[Path]) -> None:
        # A cubin cannot be executed here; the PTX beside it is, instead.
        self._cubins = {
            path.read_bytes(): path.with_suffix(".ptx").read_bytes()
            for folder in folders
            for path in folder.glob("*.cubin")
        }
        self._sizes: dict[int, int] = {}
        self._written: set[int] = set()
        self._kept: dict[int, object] = {}

    def show(self, address: int, nbytes: int, written: bool = False) -> None:
        """Register an array; a launch may touch nothing else.

        A kernel writes its last argument; of one that takes a struct, the arrays that are `written`
        must be named.
        """
        self._sizes[address] = nbytes
        if written:
            self._written.add(address)

    def cuInit(self, flags):
        return (OK,)

    def cuDeviceGet(self, ordinal):
        return OK, 0

    def cuDevicePrimaryCtxRetain(self, device):
        return OK, 1

    def cuCtxSetCurrent(self, context):
        return (OK,)

    def cuCtxGetCurrent(self):
        return OK, 1

    def cuCtxSynchronize(self):
        return (Result.CUDA_ERROR_ILLEGAL_ADDRESS if planted() == "fault" else OK,)

    def cuMemAlloc(self, size):
        memory = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self._kept[address] = memory
        self.show(address, size)
        return OK, address

    def cuMemcpyHtoD(self, target, source, size):
        ctypes.memmove(int(target), int(source), size)
        return (OK,)

    def cuMemcpyDtoH(self, target, source, size):
        ctypes.memmove(int(target), int(source), size)
        return (OK,)

    def cuModuleLoadData(self, image):
        from uino_deploy import ptx

        text = self._cubins.get(bytes(image), bytes(image))
        assert text.startswith(b"//"), "neither PTX nor a cubin of these folders"
        return OK, ptx.parse(text.rstrip(b"\0").decode())

    def cuModuleGetFunction(self, module, name):
        return (OK, module) if module.name.encode() == name else (Result.CUDA_ERROR_NOT_FOUND, None)

    def cuFuncSetAttribute(self, function, attribute, value):
        return (OK,)

    def cuFuncGetAttribute(self, attribute, function):
        return OK, 0

    def cuFuncGetParamInfo(self, function, index):
        offset = 0
        for position, parameter in enumerate(function.parameters):
            offset = -(-offset // parameter.size) * parameter.size
            if position == index:
                return OK, offset, parameter.size
            offset += parameter.size
        return Result.CUDA_ERROR_INVALID_VALUE, 0, 0

    def cuLaunchKernel(self, function, *numbers):
        from uino_deploy import ptx

        *grid_block, shared, _, block, _ = numbers
        if shared > _MOST_SHARED:
            return (Result.CUDA_ERROR_INVALID_VALUE,)
        if planted() == "hang":
            time.sleep(_FOR_EVER)
        if planted() == "fault":
            return (Result.CUDA_ERROR_ILLEGAL_ADDRESS,)
        arguments: list[object] = []
        for index, parameter in enumerate(function.parameters):
            place = ctypes.c_uint64.from_address(int(block) + 8 * index).value
            raw = ctypes.string_at(place, parameter.size)
            value = int.from_bytes(raw, "little", signed=parameter.size == 4)
            if parameter.struct:
                arguments.append(self._struct(raw))
            else:
                arguments.append(self._array(value) if parameter.size == 8 else value)
        if isinstance(arguments[0], ptx.Struct):
            outputs = [m for m in arguments[0].members if isinstance(m, ptx.Output)]
        else:
            # The outputs are the pointers behind the last int32.
            backwards = takewhile(lambda p: p.size == 8, reversed(function.parameters))
            for index in range(-len(list(backwards)), 0):
                arguments[index] = ptx.Output(arguments[index], keep=True)
            outputs = [a for a in arguments if isinstance(a, ptx.Output)]
        ptx.launch(function, tuple(grid_block[:3]), grid_block[3], shared, arguments)
        if planted() == "wrong":
            outputs[0].array[:8] = 0
        return (OK,)

    def _struct(self, raw: bytes):
        """Return a struct whose words are numbers, or the arrays at registered addresses."""
        from uino_deploy import ptx

        members: list[object] = []
        for word in np.frombuffer(raw, np.uint64):
            known = int(word) in self._sizes
            array = self._array(int(word)) if known else word
            members.append(ptx.Output(array, keep=True) if int(word) in self._written else array)
        return ptx.Struct(*members)

    def _array(self, address: int):
        memory = (ctypes.c_uint8 * self._sizes[address]).from_address(address)
        return np.frombuffer(memory, np.uint8)


def install(folders: list[Path]) -> None:
    """Replace cuda-python's driver module with the stand-in."""
    sys.modules["cuda.bindings.driver"] = Driver(folders)  # type: ignore[assignment]


def plant() -> None:
    """Plant the fault in the operators, in the CUDA runtime, or among the modules."""
    if planted() == "missing":
        for name in ("cuda.bindings.driver", "msgspec", "torch", "triton"):
            sys.modules[name] = None  # type: ignore[assignment]
        return
    for room, name in (
        ("correlation", "correlation4d"),
        ("prologue", "scan_prologue"),
        ("selective_scan", "selective_scan2d"),
        ("epilogue", "scan_epilogue"),
        ("mlp", "norm_mlp"),
    ):
        naive = import_module(f"uino_deploy.kernels.{room}.naive")
        setattr(naive, name, _faulty(getattr(naive, name)))


def _faulty(operator: Any) -> Any:
    """Return an operator with planted half-precision results; float32 is the reference."""

    def run(first: Any, *rest: Any) -> Any:
        out = operator(first, *rest)
        if first.element_size() > 2:
            return out
        if planted() == "hang":
            time.sleep(_FOR_EVER)
        if planted() == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return tuple(t.flip(-1) for t in out) if isinstance(out, tuple) else out.flip(-1)

    return run


def cudart() -> Any:
    """Return the CUDA runtime of the project's tests, with the fault planted."""
    from fake_cuda import FakeCudart, cudaError_t

    runtime = FakeCudart()
    wait = runtime.cudaStreamSynchronize

    def synchronise(stream: Any) -> Any:
        if planted() == "hang":
            time.sleep(_FOR_EVER)
        if planted() == "fault":
            return (cudaError_t.cudaErrorIllegalAddress,)
        done = wait(stream)
        if planted() == "wrong":
            for data in runtime.pinned.values():
                ctypes.memset(ctypes.addressof(data), 0, min(8, len(data)))
        return done

    runtime.cudaStreamSynchronize = synchronise
    return runtime
