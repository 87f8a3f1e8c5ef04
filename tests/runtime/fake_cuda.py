"""A CUDA runtime and a TensorRT in numpy, as cuda-python and TensorRT's bindings show them.

What a stream is given is done when someone waits for it and not before, so that a buffer used again
too early, or a result read too early, gives wrong numbers. Device addresses are no addresses of
this process; fresh device memory holds NaN; pinned memory is read when the copy is done. Every call
is logged and any can be made to fail. Engines compute with ONNX Runtime.

The names are held to cuda-python (test_cuda_memory.py) and to TensorRT-RTX's bindings, which are
TensorRT's (test_tensorrt_backend.py). What TensorRT says of a file that is no plan is a string of
libnvinfer's. The layers' names are invented: they are passed on unread.
"""

from __future__ import annotations

import ctypes
import enum
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import onnxruntime

BASE = 0x7_0000_0000


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStubLibrary = 34
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


OK = cudaError_t.cudaSuccess


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Handle:
    """A stream, graph or executable; `int()` works on it, as on cuda-python's."""

    count = 0

    def __init__(self):
        Handle.count += 1
        self.value = 0x1000 + Handle.count
        self.work = []

    def __int__(self):
        return self.value


def logged(function):
    """Log the call; return the error that was planted for it, if any."""

    def call(self, *arguments):
        name = function.__name__
        self.calls.append(name)
        planted = self.failures.get(name, [])
        if planted and (error := planted.pop(0)) is not None:
            if name == "cudaStreamEndCapture":
                self.capturing = None
            return (error, None)
        if self.capturing is not None and name in self.forbidden:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
        return function(self, *arguments)

    return call


class FakeCudart:
    """`cuda.bindings.runtime` with one GPU of `capacity` bytes."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread-local")
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )
    # What CUDA refuses while a stream is being captured.
    forbidden = ("cudaMalloc", "cudaFree", "cudaMallocHost", "cudaStreamSynchronize")

    def __init__(self, capacity=1 << 30, capability=(8, 7)):
        self.capacity, self.capability = capacity, capability
        self.calls, self.failures = [], {}
        self.device, self.pinned, self.handles = {}, {}, {}
        self.next = BASE
        self.capturing = None

    # --- what the tests look at

    def memory(self, address, size):
        """Return the bytes at a device address, which must lie in one live allocation."""
        for start, data in self.device.items():
            if start <= address and address + size <= start + data.size:
                return data[address - start : address - start + size]
        raise AssertionError(f"{address:#x} + {size} is no device memory")

    def host(self, address, size):
        for start, data in self.pinned.items():
            if start <= address and address + size <= start + len(data):
                return np.frombuffer(data, np.uint8, size, address - start)
        raise AssertionError(f"{address:#x} + {size} is no pinned memory")

    def enqueue(self, stream, work):
        handle = stream if isinstance(stream, Handle) else self.handles[stream]
        (handle if self.capturing is None else self.capturing).work.append(work)

    @property
    def used(self):
        return sum(data.size for data in self.device.values())

    # --- what cuda-python has

    @logged
    def cudaGetDeviceCount(self):
        return OK, 1

    @logged
    def cudaSetDevice(self, device):
        return (OK,)

    @logged
    def cudaGetDeviceProperties(self, device):
        return OK, SimpleNamespace(name=b"Fake GPU\0\0\0")

    @logged
    def cudaDeviceGetAttribute(self, attribute, device):
        return OK, self.capability[attribute - 75]

    @logged
    def cudaMemGetInfo(self):
        return OK, self.capacity - self.used, self.capacity

    @logged
    def cudaDriverGetVersion(self):
        return OK, 12060

    @logged
    def cudaGetLastError(self):
        return (OK,)

    @logged
    def cudaMalloc(self, size):
        if self.used + size > self.capacity:
            return cudaError_t.cudaErrorMemoryAllocation, None
        address, self.next = self.next, self.next + size + 4096
        self.device[address] = np.full(size, 0xFF, np.uint8)
        return OK, address

    @logged
    def cudaFree(self, address):
        if address:
            del self.device[address]
        return (OK,)

    @logged
    def cudaMallocHost(self, size):
        data = (ctypes.c_char * size)(*b"\xff" * size)
        self.pinned[ctypes.addressof(data)] = data
        return OK, ctypes.addressof(data)

    @logged
    def cudaFreeHost(self, address):
        del self.pinned[address]
        return (OK,)

    @logged
    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = Handle()
        self.handles[int(stream)] = stream
        return OK, stream

    @logged
    def cudaStreamDestroy(self, stream):
        del self.handles[int(stream)]
        return (OK,)

    @logged
    def cudaStreamSynchronize(self, stream):
        work, stream.work = stream.work, []
        for step in work:
            step()
        return (OK,)

    @logged
    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        to = self.host if kind == cudaMemcpyKind.cudaMemcpyDeviceToHost else self.memory
        of = self.host if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else self.memory
        to(target, size), of(source, size)
        self.enqueue(stream, lambda: np.copyto(to(target, size), of(source, size)))
        return (OK,)

    @logged
    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == "thread-local"
        self.capturing = Handle()
        return (OK,)

    @logged
    def cudaStreamEndCapture(self, stream):
        graph, self.capturing = self.capturing, None
        self.handles[int(graph)] = graph
        return OK, graph

    @logged
    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        executable = Handle()
        executable.work = list(graph.work)
        self.handles[int(executable)] = executable
        return OK, executable

    @logged
    def cudaGraphDestroy(self, graph):
        del self.handles[int(graph)]
        return (OK,)

    @logged
    def cudaGraphExecDestroy(self, executable):
        del self.handles[int(executable)]
        return (OK,)

    @logged
    def cudaGraphLaunch(self, executable, stream):
        for step in executable.work:
            self.enqueue(stream, step)
        return (OK,)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class FakeTensorRt:
    """`tensorrt`: a plan is the path of the ONNX file that its engine computes.

    As in TensorRT the first logger is kept for all runtimes; a second one gets a warning ("differs
    from one already registered": libnvinfer_lean 10.15 to 11.4, and tensorrt-rtx 1.7.1 when run).
    A runtime that cannot be made is a TypeError: tests/contract/test_names.py.
    """

    __name__ = "tensorrt"

    __version__ = "10.9.0.34"
    DataType = DataType
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    TensorLocation = SimpleNamespace(DEVICE="device", HOST="host")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class IProfiler:
        pass

    def __init__(self, cudart):
        self.cudart = cudart
        self.refused = ""  # the call of a context that returns False
        self.logger = None
        self.driver = True
        self.weights = 4096  # bytes that an engine takes

    def Runtime(self, logger):
        if not self.driver:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = self.logger or logger
        return Runtime(self, self.logger)


class Runtime:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan):
        if plan.startswith(b"damaged"):
            self.logger.log(self.trt.ILogger.WARNING, "not this")
            self.logger.log(self.trt.ILogger.ERROR, "Magic tag does not match")
            return None
        return Engine(self.trt, _session(plan.decode()))


@lru_cache(16)
def _session(path):
    return onnxruntime.InferenceSession(path)


class Engine:
    def __init__(self, trt, session):
        self.trt, self.session = trt, session
        self.inputs = {edge.name: edge for edge in session.get_inputs()}
        self.edges = [*session.get_inputs(), *session.get_outputs()]
        self.num_io_tensors = len(self.edges)
        trt.cudart.cudaMalloc(trt.weights)

    def edge(self, name):
        return next(edge for edge in self.edges if edge.name == name)

    def get_tensor_name(self, index):
        return self.edges[index].name

    def get_tensor_mode(self, name):
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name):
        return {"tensor(float)": DataType.FLOAT}[self.edge(name).type]

    def get_tensor_shape(self, name):
        return tuple(size if isinstance(size, int) else -1 for size in self.edge(name).shape)

    def get_tensor_location(self, name):
        return self.trt.TensorLocation.DEVICE

    def create_execution_context(self):
        return Context(self.trt, self)


class Context:
    def __init__(self, trt, engine):
        self.trt, self.engine = trt, engine
        self.shapes, self.addresses = {}, {}
        self.shape_changes = 0
        self.profiler = None

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        self.shape_changes += 1
        return self.trt.refused != "set_input_shape"

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        """Name each dynamic dimension of the outputs after the inputs' dimension of its name."""
        sizes = {
            named: size
            for edge, shape in self.shapes.items()
            for named, size in zip(self.engine.inputs[edge].shape, shape, strict=True)
            if isinstance(named, str)
        }
        return tuple(sizes.get(size, size) for size in self.engine.edge(name).shape)

    def set_tensor_address(self, name, address):
        assert address % 256 == 0
        self.addresses[name] = address
        return self.trt.refused != "set_tensor_address"

    def execute_async_v3(self, stream):
        assert isinstance(stream, int)
        assert stream != 0, "the default stream"
        if self.trt.refused == "execute_async_v3":
            return False
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        outputs = {
            edge.name: self.get_tensor_shape(edge.name)
            for edge in self.engine.edges
            if edge.name not in shapes
        }
        cudart = self.trt.cudart

        def read(name, shape):
            size = 4 * int(np.prod(shape))
            return cudart.memory(addresses[name], size).view(np.float32).reshape(shape).copy()

        def work():
            feeds = {name: read(name, shape) for name, shape in shapes.items()}
            for name, array in zip(
                outputs, self.engine.session.run(list(outputs), feeds), strict=True
            ):
                assert array.shape == outputs[name]
                data = np.ascontiguousarray(array).view(np.uint8).ravel()
                cudart.memory(addresses[name], data.size)[:] = data

        cudart.enqueue(stream, work)
        if self.profiler is not None:
            cudart.cudaStreamSynchronize(cudart.handles[stream])
            self.profiler.report_layer_time("[MUL]-[node_mul]", 0.5)
            self.profiler.report_layer_time("_gemm_mha_v2", 1.5)
        return True
