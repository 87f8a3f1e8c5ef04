"""A GPU's memory, one stream and CUDA graphs through cuda-python, every return value checked.

All work of a `Device` goes through its one stream, in order. So an array's memory can be reused as
soon as nobody holds the array: whatever still reads it was enqueued earlier.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
import numpy.typing as npt

from uino_deploy.errors import CudaError, DependencyError
from uino_deploy.runtime.session import Array

# TensorRT's alignment for input and output addresses (NvInferRuntime.h, setTensorAddress).
ALIGNMENT = 256


def import_cudart() -> Any:
    """Import cuda-python's module of the CUDA runtime, under its newer or its older name.

    Raises:
        DependencyError: it is not installed.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DependencyError(
        "cuda-python is not installed",
        "pip install cuda-python in the CUDA version that nvidia-smi shows, for an NVIDIA GPU",
    )


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Return the value, or the tuple of values, of a CUDA runtime call.

    Args:
        result: the call's return value: an error, then any values.
        doing: the purpose of the call, for the message.

    Raises:
        DependencyError: there is no GPU, no driver, or one too old for this cuda-python.
        CudaError: the call failed for any other reason.
    """
    error, *values = result
    if int(error) != 0:
        what = f"{doing}: {error.name} ({int(error)})"
        if error.name in _MISSING:
            raise DependencyError(what, _MISSING[error.name])
        raise CudaError(what, _HINTS.get(error.name, ""))
    return values[0] if len(values) == 1 else tuple(values)


# Errors for something missing on the machine, not a GPU fault; names as in driver_types.h.
_MISSING = {
    "cudaErrorStubLibrary": "install the GPU's driver: the toolkit's stub of it was loaded",
    "cudaErrorInsufficientDriver": "install the GPU's driver, or one for this cuda-python",
    "cudaErrorNoDevice": "this needs an NVIDIA GPU",
}
_HINTS = {
    "cudaErrorMemoryAllocation": "the GPU's memory is full: stop other programs on it, or use a "
    "smaller batch, image size or precision",
}


@dataclass
class _Held:
    """The CUDA resources that a device holds and releases at its end."""

    device: set[int] = field(default_factory=set)
    pinned: int = 0
    stream: Any = None


class Device:
    """The first GPU that CUDA reports: its stream, its memory and its description.

    Attributes:
        name: the product's name.
        architecture: such as "sm_87".
        lock: held by the thread that puts work into the stream: threads take turns.

    Raises:
        DependencyError: no cuda-python, no driver or no GPU.
    """

    def __init__(self) -> None:
        self._cudart = cudart = import_cudart()
        self._select()
        self.name = _text(check(cudart.cudaGetDeviceProperties(0), "asking for the GPU").name)
        attributes = cudart.cudaDeviceAttr
        major, minor = (
            check(cudart.cudaDeviceGetAttribute(attribute, 0), "asking for the GPU's architecture")
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.architecture = f"sm_{major}{minor}"
        self.lock = threading.RLock()
        self._allocated = 0
        self._idle: dict[int, list[int]] = {}
        self._staging, self._staged = 0, 0
        # Not the default stream: TensorRT synchronises on it, and it cannot be captured.
        stream = check(
            cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "making a stream"
        )
        self._held = _Held(stream=stream)
        finalize(self, _give_back, cudart, self._held)

    @property
    def stream(self) -> int:
        """The stream's handle, in TensorRT's form."""
        return int(self._held.stream)

    @property
    def allocated(self) -> int:
        """Bytes of device memory that arrays use, or that are kept for reuse."""
        return self._allocated

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the GPU's memory."""
        free, total = check(self._cudart.cudaMemGetInfo(), "asking for the GPU's memory")
        return int(free), int(total)

    def driver_release(self) -> str:
        """Return the newest CUDA release that the driver runs, such as "12.6"."""
        number = int(check(self._cudart.cudaDriverGetVersion(), "asking for the driver"))
        return f"{number // 1000}.{number % 1000 // 10}"

    def synchronise(self) -> None:
        """Wait until everything in the stream is done."""
        with self.lock:
            check(self._cudart.cudaStreamSynchronize(self._held.stream), "waiting for the GPU")
            self._staged = 0

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """Return an uninitialised array."""
        return DeviceArray(self, tuple(shape), np.dtype(dtype))

    def upload(self, array: Array) -> DeviceArray:
        """Start copying a host array to the device; the array is read before this returns."""
        with self.lock:
            made = self.empty(array.shape, array.dtype)
            if array.nbytes:
                address = self._stage(array.nbytes)
                source = np.ascontiguousarray(array)
                ctypes.memmove(address, source.ctypes.data, source.nbytes)
                kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
                self._copy(made.address, address, array.nbytes, kind, "copying to the GPU")
            return made

    def download(self, arrays: Mapping[str, DeviceArray | _Part]) -> dict[str, Array]:
        """Copy arrays to the host, waiting until they are computed."""
        with self.lock:
            offsets, total = {}, 0
            for name, array in arrays.items():
                offsets[name] = total
                total += _rounded(array.nbytes)
            address = self._stage(total)
            kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            for name, array in arrays.items():
                if array.nbytes:
                    target = address + offsets[name]
                    self._copy(target, array.address, array.nbytes, kind, "copying from the GPU")
            self.synchronise()
            copies = {}
            for name, array in arrays.items():
                copies[name] = np.empty(array.shape, array.dtype)
                ctypes.memmove(copies[name].ctypes.data, address + offsets[name], array.nbytes)
            return copies

    def copy(self, target: DeviceArray, source: DeviceArray | _Part) -> None:
        """Start copying an array to another of the same size, both on this device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, source.nbytes, kind, "copying inside the GPU")

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record the work that `work` enqueues; it must not wait or allocate.

        Raises:
            CudaError: the work cannot be recorded; nothing ran.
        """
        cudart, stream = self._cudart, self._held.stream
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(stream, mode), "beginning a CUDA graph")
        try:
            work()
        except BaseException:
            # The stream must leave capture; the error to report is the one from the work.
            _, unfinished = cudart.cudaStreamEndCapture(stream)
            if unfinished is not None and int(unfinished):
                check(cudart.cudaGraphDestroy(unfinished), "dropping a CUDA graph")
            raise
        graph = check(cudart.cudaStreamEndCapture(stream), "ending a CUDA graph")
        made = cudart.cudaGraphInstantiate(graph, 0)
        check(cudart.cudaGraphDestroy(graph), "dropping a CUDA graph")
        return Graph(cudart, check(made, "making a CUDA graph"))

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph."""
        launched = self._cudart.cudaGraphLaunch(graph.executable, self._held.stream)
        check(launched, "launching a CUDA graph")

    def take(self, nbytes: int) -> int:
        """Return the address of memory of at least that size, aligned to `ALIGNMENT`.

        Reuses returned memory of that size, if any.
        """
        size = _rounded(nbytes)
        with self.lock:
            idle = self._idle.setdefault(size, [])
            return idle.pop() if idle else self._allocate(size)

    def give(self, address: int, nbytes: int) -> None:
        """Return memory from `take`; the next `take` of its size reuses it."""
        self._idle[_rounded(nbytes)].append(address)

    def _select(self) -> None:
        """Make the first GPU the current one and start CUDA on it."""
        try:
            count = check(self._cudart.cudaGetDeviceCount(), "looking for a GPU")
        # Without a driver, cuda-python up to 12.6 raises; newer ones return an error.
        except RuntimeError as error:
            raise DependencyError(
                f"looking for a GPU: {error}", "install the GPU's driver"
            ) from error
        if not count:
            raise DependencyError("this machine has no NVIDIA GPU", "use another backend")
        check(self._cudart.cudaSetDevice(0), "selecting the GPU")
        check(self._cudart.cudaFree(0), "starting CUDA")

    def _allocate(self, size: int) -> int:
        result = self._cudart.cudaMalloc(size)
        if result[0] == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            # CUDA keeps the last error, and TensorRT would mistake it for its own.
            self._cudart.cudaGetLastError()
            self._free_idle()
            result = self._cudart.cudaMalloc(size)
        address = int(check(result, f"taking {size} bytes of the GPU's memory"))
        self._held.device.add(address)
        self._allocated += size
        if address % ALIGNMENT:
            raise CudaError(
                f"cudaMalloc returned {address:#x}, which is not aligned to {ALIGNMENT}"
            )
        return address

    def _free_idle(self) -> None:
        """Free the unused memory."""
        self.synchronise()
        for size, addresses in self._idle.items():
            while addresses:
                address = addresses.pop()
                check(self._cudart.cudaFree(address), "freeing the GPU's memory")
                self._held.device.remove(address)
                self._allocated -= size

    def _stage(self, nbytes: int) -> int:
        """Return the address of pinned memory that nothing in the stream uses."""
        if self._staged + nbytes > self._staging:
            self.synchronise()
            if nbytes > self._staging:
                self._grow_staging(nbytes)
        address = self._held.pinned + self._staged
        self._staged += _rounded(nbytes)
        return address

    def _grow_staging(self, nbytes: int) -> None:
        cudart = self._cudart
        if self._held.pinned:
            check(cudart.cudaFreeHost(self._held.pinned), "freeing pinned memory")
            self._held.pinned, self._staging = 0, 0
        size = _rounded(nbytes)
        pinned = check(cudart.cudaMallocHost(size), f"taking {size} bytes of pinned memory")
        self._held.pinned, self._staging = int(pinned), size

    def _copy(self, target: int, source: int, nbytes: int, kind: Any, doing: str) -> None:
        copied = self._cudart.cudaMemcpyAsync(target, source, nbytes, kind, self._held.stream)
        check(copied, doing)


class DeviceArray:
    """An array in a device's memory, which returns to the device when the array is dropped.

    Attributes:
        device: the device that owns the memory.
        shape: the size of each dimension.
        dtype: the elements' type.
        nbytes: size of all elements.
        address: address of the first element, aligned to `ALIGNMENT`.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.address = device.take(self.nbytes)
        # Not at interpreter exit: the device then frees everything at once.
        finalize(self, device.give, self.address, self.nbytes).atexit = False

    def to_host(self) -> Array:
        """Return a copy in host memory, waiting until it is computed."""
        return self.device.download({"array": self})["array"]

    def last_to_host(self) -> Array:
        """Return a copy of the array at [0, -1] alone in host memory, likewise."""
        shape = self.shape[2:]
        nbytes = math.prod(shape) * self.dtype.itemsize
        address = self.address + (self.shape[1] - 1) * nbytes
        return self.device.download({"part": _Part(shape, self.dtype, nbytes, address)})["part"]

    def rows(self) -> list[DeviceArray]:
        """Start copying each [1, ...] of the first dimension to an array of its own, aligned."""
        shape = (1, *self.shape[1:])
        nbytes = math.prod(shape) * self.dtype.itemsize
        rows = []
        with self.device.lock:
            for index in range(self.shape[0]):
                row = self.device.empty(shape, self.dtype)
                address = self.address + index * nbytes
                self.device.copy(row, _Part(shape, self.dtype, nbytes, address))
                rows.append(row)
        return rows


class _Part(NamedTuple):
    """A contiguous part of a device's array, which must outlive it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    address: int


class Graph:
    """A recorded CUDA graph, ready to launch."""

    def __init__(self, cudart: Any, executable: Any) -> None:
        self.executable = executable
        finalize(self, _drop_graph, cudart, executable)


def _rounded(nbytes: int) -> int:
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT


def _text(name: str | bytes) -> str:
    return name.split(b"\0")[0].decode() if isinstance(name, bytes) else name


def _drop_graph(cudart: Any, executable: Any) -> None:
    _release(cudart.cudaGraphExecDestroy(executable), "dropping a CUDA graph")


def _give_back(cudart: Any, held: _Held) -> None:
    """Free everything that a device holds, once nothing uses it."""
    _release(cudart.cudaStreamSynchronize(held.stream), "waiting for the GPU")
    for address in held.device:
        _release(cudart.cudaFree(address), "freeing the GPU's memory")
    if held.pinned:
        _release(cudart.cudaFreeHost(held.pinned), "freeing pinned memory")
    _release(cudart.cudaStreamDestroy(held.stream), "dropping a stream")


def _release(result: tuple[Any, ...], doing: str) -> None:
    """Warn of a failure that nobody can catch; an earlier error has already been raised."""
    if int(result[0]) != 0:
        warnings.warn(f"{doing}: {result[0].name}", ResourceWarning, stacklevel=2)
