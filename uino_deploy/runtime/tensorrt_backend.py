"""The TensorRT and TensorRT-RTX backends: a bundle's plans on this machine's GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from uino_deploy.bundle import Bundle, Edge, Piece
from uino_deploy.bundle.checked import kernels_folder
from uino_deploy.bundle.plans import EngineBackend, Profile, load_plan, rebuild_command
from uino_deploy.dependencies import install_command
from uino_deploy.errors import BundleError, CheckFailed, CudaError, DependencyError, InputError
from uino_deploy.runtime.cuda_memory import Device, DeviceArray, Graph
from uino_deploy.runtime.session import (
    Array,
    DeviceMemory,
    Done,
    Item,
    LayerTime,
    Session,
    Value,
    check_complete,
    check_shape,
    convert,
    to_host,
)

_MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class TensorRtBackend:
    """Runs the plans that `uino-deploy build` put into a bundle.

    Its sessions may be used from several threads, which take turns at the GPU.

    Args:
        name: tensorrt or tensorrt-rtx.
        cuda_graphs: record a piece once for each set of shapes and replay it: fewer launches, at
            the cost of one copy of inputs and outputs inside the GPU.
        profile: time the layers of every run, which waits for each; see `TensorRtSession.layers`.

    Raises:
        DependencyError: the library or cuda-python is not installed, or there is no GPU.
    """

    def __init__(
        self, name: EngineBackend = "tensorrt", cuda_graphs: bool = False, profile: bool = False
    ) -> None:
        self._name = name
        self._trt = _import_tensorrt(name)
        self._device = Device()
        self._log = _logger(self._trt)
        self._runtime = _runtime(self._trt, self._log)
        self._cuda_graphs = cuda_graphs
        self._profile = profile
        self._engines = 0

    def load(self, bundle: Bundle, piece: str) -> TensorRtSession:
        """Load the plan of a piece; see `Backend.load`.

        Raises:
            BundleError: the bundle has no plan for this GPU and library, or the plan is stale or
                does not match the manifest; the hint is the command that builds it.
        """
        described = bundle.piece(piece)
        architecture = self._device.architecture
        path, info = load_plan(bundle, piece, self._name, architecture, self._trt.__version__)
        if info.route == "ipluginv3":
            _register_plugins(bundle, architecture)
        again = rebuild_command(bundle, self._name, architecture)
        data = bundle.read(path.relative_to(bundle.root).as_posix())
        return self._load_plan(data, path, described, info.shapes, again)

    def load_plan_file(
        self, path: Path, piece: Piece, profile: Profile, again: str
    ) -> TensorRtSession:
        """Load a plan that need not be in a bundle.

        Args:
            path: the plan.
            piece: its inputs and outputs.
            profile: the least, usual and largest shape of each input whose size ranges.
            again: the command that builds the plan anew.

        Raises:
            BundleError: it is no plan of this library, or not the piece's.
        """
        return self._load_plan(path.read_bytes(), path, piece, profile, again)

    def _load_plan(
        self, data: bytes, path: Path, piece: Piece, profile: Profile, again: str
    ) -> TensorRtSession:
        before, _ = self._device.memory()
        self._log.last_error = ""
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(f"{path} cannot be loaded: {self._log.last_error}", again)
        _check_edges(self._trt, path, piece, engine, again)
        context = engine.create_execution_context()
        if context is None:
            raise CudaError(f"{path} cannot be made ready: {self._log.last_error}")
        after, _ = self._device.memory()
        self._engines += max(0, before - after)
        times = _layer_times(self._trt) if self._profile else None
        if times is not None:
            context.profiler = times
        return TensorRtSession(self, piece, profile, context, times)

    def load_all(self, bundle: Bundle, pieces: Sequence[str]) -> dict[str, Session]:
        """Load the plans one after the other, to measure the memory that each takes."""
        return {piece: self.load(bundle, piece) for piece in pieces}

    def describe(self) -> dict[str, str]:
        """Return the backend, its version, the GPU, and whether it uses CUDA graphs."""
        return {
            "backend": self._name,
            "version": self._trt.__version__,
            "device": f"{self._device.name} ({self._device.architecture})",
            "cuda_graphs": "yes" if self._cuda_graphs else "no",
        }

    def each(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Do the work for one item after the other, on the one GPU; see `Backend.each`."""
        return [work(item) for item in items]

    def synchronise(self) -> None:
        """Wait until all started work is done."""
        self._device.synchronise()

    def memory(self) -> DeviceMemory:
        """Return the use of the GPU's memory; see `DeviceMemory`.

        `engines` is the amount by which free memory shrank while the plans were loaded.
        """
        free, total = self._device.memory()
        return DeviceMemory(self._engines, self._device.allocated, total - free, total)

    @property
    def device(self) -> Device:
        """The GPU."""
        return self._device

    @property
    def cuda_graphs(self) -> bool:
        """Whether sessions record and replay."""
        return self._cuda_graphs

    @property
    def last_error(self) -> str:
        """TensorRT's last error message."""
        return str(self._log.last_error)


class TensorRtSession:
    """A piece's engine and its one execution context."""

    def __init__(
        self, backend: TensorRtBackend, piece: Piece, profile: Profile, context: Any, times: Any
    ) -> None:
        self._backend = backend
        self._piece = piece
        self._profile = profile
        self._context = context
        self._times = times  # TensorRT does not keep it
        self._inputs = {tensor.name: tensor for tensor in piece.inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._recorded: _Recorded | None = None

    @property
    def piece(self) -> Piece:
        """The piece's description."""
        return self._piece

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Array]:
        """Run the piece; see `Session.run`."""
        return self._backend.device.download(self._start(feeds))

    def run_resident(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Start the piece; see `Session.run_resident`."""
        return dict(self._start(feeds))

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, Value]:
        """Put inputs into the GPU's memory; see `Session.upload`."""
        device = self._backend.device
        return {name: device.upload(array) for name, array in convert(self._piece, feeds).items()}

    def layers(self) -> list[LayerTime]:
        """Return the layers of the last run, in their order; the backend was made to profile."""
        self._backend.synchronise()
        return list(self._times.layers)

    def _start(self, feeds: Mapping[str, Value]) -> dict[str, DeviceArray]:
        check_complete(self._piece, feeds)
        with self._backend.device.lock:  # the context has one set of addresses and shapes
            inputs = {
                name: self._on_device(self._inputs[name], value) for name, value in feeds.items()
            }
            self._set_shapes({name: array.shape for name, array in inputs.items()})
            outputs = self._empty_outputs()
            if self._backend.cuda_graphs:
                self._replay(inputs, outputs)
            else:
                self._bind({**inputs, **outputs})
                self._enqueue()
        return outputs

    def _on_device(self, tensor: Edge, value: Value) -> DeviceArray:
        """Return an input in this device's memory, copied there only if needed."""
        device = self._backend.device
        if not (isinstance(value, DeviceArray) and value.device is device):
            array = convert(self._piece, {tensor.name: to_host(value)})[tensor.name]
            return device.upload(array)
        check_shape(self._piece, tensor, value.shape)
        if value.dtype != np.dtype(tensor.dtype):
            raise InputError(
                f"piece {self._piece.name} takes {tensor.name} as {tensor.dtype}, not {value.dtype}"
            )
        return value

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        # A run in progress uses the old shapes, and TensorRT would silently change them under it.
        self._backend.device.synchronise()
        for name, shape in shapes.items():
            self._check_profile(name, shape)
            if not self._context.set_input_shape(name, shape):
                raise self._failed(f"{name} of shape {list(shape)} was refused")
        missing = self._context.infer_shapes()
        if missing:
            raise self._failed(f"the shapes of {', '.join(missing)} are unknown")
        self._shapes = shapes

    def _check_profile(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a shape that the engine was not built for, and say for which it was."""
        if name not in self._profile:
            return
        least, _, largest = self._profile[name]
        if not all(
            low <= got <= high for low, got, high in zip(least, shape, largest, strict=True)
        ):
            raise InputError(
                f"{name} of shape {list(shape)}: the engine of {self._piece.name} was built for "
                f"{least} to {largest}",
                "build it with --shapes batch:MIN:OPT:MAX or shots:MIN:OPT:MAX",
            )

    def _empty_outputs(self) -> dict[str, DeviceArray]:
        return {
            tensor.name: self._backend.device.empty(
                tuple(self._context.get_tensor_shape(tensor.name)), tensor.dtype
            )
            for tensor in self._piece.outputs
        }

    def _bind(self, arrays: Mapping[str, DeviceArray]) -> None:
        for name, array in arrays.items():
            if not self._context.set_tensor_address(name, array.address):
                raise self._failed(f"the address of {name} was refused")

    def _enqueue(self) -> None:
        if self._times is not None:
            self._times.layers.clear()
        if not self._context.execute_async_v3(self._backend.device.stream):
            raise self._failed("it did not run")

    def _replay(self, inputs: dict[str, DeviceArray], outputs: dict[str, DeviceArray]) -> None:
        """Replay a graph of these shapes, recorded on first use."""
        device, recorded = self._backend.device, self._recorded
        if recorded is None or recorded.shapes != self._shapes:
            recorded = self._record(inputs)
        for name, array in inputs.items():
            device.copy(recorded.arrays[name], array)
        device.launch(recorded.graph)
        for name, array in outputs.items():
            device.copy(array, recorded.arrays[name])

    def _record(self, inputs: dict[str, DeviceArray]) -> _Recorded:
        """Record the engine on separate arrays: a graph keeps their addresses."""
        device = self._backend.device
        self._recorded = None  # returns its arrays before new ones are allocated
        own = {name: device.empty(array.shape, array.dtype) for name, array in inputs.items()}
        for name, array in inputs.items():
            device.copy(own[name], array)
        arrays = {**own, **self._empty_outputs()}
        self._bind(arrays)
        # The first run of a shape does deferred work, such as loading modules.
        self._enqueue()
        device.synchronise()
        self._recorded = _Recorded(self._shapes, arrays, device.capture(self._enqueue))
        return self._recorded

    def _failed(self, what: str) -> CheckFailed:
        said = self._backend.last_error
        return CheckFailed(
            f"the engine of {self._piece.name}: {what}" + (f": {said}" if said else "")
        )


class _Recorded:
    """A graph and the arrays that it reads and writes."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], arrays: dict[str, DeviceArray], graph: Graph
    ) -> None:
        self.shapes = shapes
        self.arrays = arrays
        self.graph = graph


def _import_tensorrt(name: EngineBackend) -> Any:
    try:
        return importlib.import_module(_MODULES[name])
    # Without their native library, the bindings raise other errors than ImportError.
    except (ImportError, OSError, RuntimeError) as error:
        raise DependencyError(
            f"{name} cannot be imported: {error}", install_command(name)
        ) from error


def _register_plugins(bundle: Bundle, architecture: str) -> None:
    from uino_deploy.kernels.plugins import register_plugins

    def read(path: Path) -> bytes:
        return bundle.read(path.relative_to(bundle.root).as_posix())

    folder = kernels_folder(architecture)
    place = bundle.root / folder if bundle.within(folder) else None
    register_plugins(architecture, place, "ipluginv3", read)


def _check_edges(trt: Any, path: Path, piece: Piece, engine: Any, again: str) -> None:
    """Refuse an engine whose inputs or outputs differ from the manifest's."""
    dtypes = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    edges = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype = engine.get_tensor_dtype(name)
        edges.add((kind, name, dtypes.get(dtype, str(dtype)), len(engine.get_tensor_shape(name))))
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BundleError(f"{path}: {name} is not in the GPU's memory", again)
    wanted = {
        (kind, tensor.name, tensor.dtype, len(tensor.shape))
        for kind, tensors in (("input", piece.inputs), ("output", piece.outputs))
        for tensor in tensors
    }
    if edges != wanted:
        raise BundleError(
            f"{path} has {sorted(edges)}; the bundle's manifest has {sorted(wanted)}", again
        )


def _runtime(trt: Any, log: Any) -> Any:
    """Return a runtime; if TensorRT cannot create one, its bindings raise TypeError."""
    try:
        return trt.Runtime(log)
    except TypeError as error:
        raise DependencyError(
            f"{trt.__name__} {trt.__version__} cannot create a runtime: {log.last_error or error}",
            "is the driver installed, and new enough?",
        ) from error


@cache
def _logger(trt: Any) -> Any:
    """Return the process's logger: TensorRT keeps the first one it gets, for all runtimes."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is imported at run time
        """A TensorRT logger that keeps the last error and drops the rest."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message

    return Logger()


def _layer_times(trt: Any) -> Any:
    class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # the base class is imported at run time
        """The layer times that TensorRT reports; it names layers, not their operators."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: list[LayerTime] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append(LayerTime(layer_name, layer_name, ms / 1000))

    return LayerTimes()
