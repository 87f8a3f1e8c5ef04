"""A GPU's memory, one stream and graphs through cuda-python, every return value checked.

All work of a `Device` goes through its one stream, in the order in which it was asked for. That is
why an array's memory may be given to another as soon as nobody holds the first: what still reads it
was asked for earlier.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from uino_deploy.errors import CudaError, DependencyError
from uino_deploy.runtime.session import Array

# TensorRT wants the addresses of inputs and outputs so (NvInferRuntime.h, setTensorAddress).
ALIGNMENT = 256


def import_cudart() -> Any:
    """Import cuda-python's module of the CUDA runtime, by its name now or by its older one.

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
        "pip install cuda-python, of the CUDA version that nvidia-smi shows, for an NVIDIA GPU",
    )


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Return the value, or the tuple of values, of a call of the CUDA runtime.

    Args:
        result: what the call returned: its error, and its values if it has any.
        doing: what it was for, for the message.

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


# What is missing on the machine, and no fault of a GPU: driver_types.h names them so.
_MISSING = {
    "cudaErrorStubLibrary": "install the GPU's driver: the toolkit's stub of it was loaded",
    "cudaErrorInsufficientDriver": "install the GPU's driver, or one for this cuda-python",
    "cudaErrorNoDevice": "this needs an NVIDIA GPU",
}
_HINTS = {
    "cudaErrorMemoryAllocation": "the GPU's memory is full: stop what else uses it, or use a "
    "smaller batch, image size or precision",
}


@dataclass
class _Held:
    """What a device has taken of CUDA and gives back at its end."""

    device: set[int] = field(default_factory=set)
    pinned: int = 0
    stream: Any = None


class Device:
    """The first GPU that CUDA shows: its stream, its memory, and what it is.

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
        # A stream of its own: TensorRT synchronises on the default one, which cannot be captured.
        stream = check(
            cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "making a stream"
        )
        self._held = _Held(stream=stream)
        finalize(self, _give_back, cudart, self._held)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._held.stream)

    @property
    def allocated(self) -> int:
        """Bytes of device memory that arrays use or used and that are kept for the next ones."""
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
        """Return an array whose values are whatever its memory held."""
        return DeviceArray(self, tuple(shape), np.dtype(dtype))

    def upload(self, array: Array) -> DeviceArray:
        """Start copying an array of the host to the device; the array is read at once."""
        with self.lock:
            made = self.empty(array.shape, array.dtype)
            if array.nbytes:
                address = self._stage(array.nbytes)
                source = np.ascontiguousarray(array)
                ctypes.memmove(address, source.ctypes.data, source.nbytes)
                kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
                self._copy(made.address, address, array.nbytes, kind, "copying to the GPU")
            return made

    def download(self, arrays: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """Copy arrays to the host and wait for what computes them."""
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
            found = {}
            for name, array in arrays.items():
                found[name] = np.empty(array.shape, array.dtype)
                ctypes.memmove(found[name].ctypes.data, address + offsets[name], array.nbytes)
            return found

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Start copying an array to another of its size, both on this device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, source.nbytes, kind, "copying inside the GPU")

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts into the stream, which must not wait or allocate.

        Raises:
            CudaError: it cannot be recorded; nothing was run.
        """
        cudart, stream = self._cudart, self._held.stream
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(stream, mode), "beginning a CUDA graph")
        try:
            work()
        except BaseException:
            # The stream must leave capture; the reason why the work failed is the one to tell.
            _, unfinished = cudart.cudaStreamEndCapture(stream)
            if unfinished is not None and int(unfinished):
                check(cudart.cudaGraphDestroy(unfinished), "dropping a CUDA graph")
            raise
        graph = check(cudart.cudaStreamEndCapture(stream), "ending a CUDA graph")
        made = cudart.cudaGraphInstantiate(graph, 0)
        check(cudart.cudaGraphDestroy(graph), "dropping a CUDA graph")
        return Graph(cudart, check(made, "making a CUDA graph"))

    def launch(self, graph: Graph) -> None:
        """Start a graph in the stream."""
        launched = self._cudart.cudaGraphLaunch(graph.executable, self._held.stream)
        check(launched, "launching a CUDA graph")

    def take(self, nbytes: int) -> int:
        """Return the address of memory of at least that size, aligned to `ALIGNMENT`.

        Memory of that size that was given back is preferred to new memory.
        """
        size = _rounded(nbytes)
        with self.lock:
            idle = self._idle.setdefault(size, [])
            return idle.pop() if idle else self._allocate(size)

    def give(self, address: int, nbytes: int) -> None:
        """Take back what `take` gave; the next `take` of its size gets it."""
        self._idle[_rounded(nbytes)].append(address)

    def _select(self) -> None:
        """Make the first GPU the current one and start CUDA on it."""
        try:
            count = check(self._cudart.cudaGetDeviceCount(), "looking for a GPU")
        # cuda-python 12.6 and older raise where there is no driver, newer ones return an error.
        except RuntimeError as error:
            raise DependencyError(
                f"looking for a GPU: {error}", "install the GPU's driver"
            ) from error
        if not count:
            raise DependencyError("there is no NVIDIA GPU here", "use another backend")
        check(self._cudart.cudaSetDevice(0), "selecting the GPU")
        check(self._cudart.cudaFree(0), "starting CUDA")

    def _allocate(self, size: int) -> int:
        result = self._cudart.cudaMalloc(size)
        if result[0] == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            # CUDA remembers a failure, and TensorRT would take it for its own.
            self._cudart.cudaGetLastError()
            self._free_idle()
            result = self._cudart.cudaMalloc(size)
        address = int(check(result, f"taking {size} bytes of the GPU's memory"))
        self._held.device.add(address)
        self._allocated += size
        if address % ALIGNMENT:
            raise CudaError(f"cudaMalloc gave {address:#x}, which is not aligned to {ALIGNMENT}")
        return address

    def _free_idle(self) -> None:
        """Give the memory that nobody uses back to CUDA."""
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
    """An array in a device's memory, which goes back to the device when the array is dropped.

    Attributes:
        device: whose memory it is.
        shape: the size of each dimension.
        dtype: the elements' type.
        nbytes: their size together.
        address: the first element's, aligned to `ALIGNMENT`.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.address = device.take(self.nbytes)
        # Not at the interpreter's end: the device then frees everything at once.
        finalize(self, device.give, self.address, self.nbytes).atexit = False

    def to_host(self) -> Array:
        """Return a copy in the host's memory; waits for what computes it."""
        return self.device.download({"array": self})["array"]


class Graph:
    """A recorded piece of work, ready to be launched."""

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
    """Free all that a device holds, once nothing uses it."""
    _release(cudart.cudaStreamSynchronize(held.stream), "waiting for the GPU")
    for address in held.device:
        _release(cudart.cudaFree(address), "freeing the GPU's memory")
    if held.pinned:
        _release(cudart.cudaFreeHost(held.pinned), "freeing pinned memory")
    _release(cudart.cudaStreamDestroy(held.stream), "dropping a stream")


def _release(result: tuple[Any, ...], doing: str) -> None:
    """Warn of a failure where nobody can catch an error: it is the echo of one already raised."""
    if int(result[0]) != 0:
        warnings.warn(f"{doing}: {result[0].name}", ResourceWarning, stacklevel=2)
