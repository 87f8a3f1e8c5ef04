"""One engine built by TensorRT or TensorRT-RTX, in its own process.

A parser or builder that aborts ends only that process. `uino_deploy.child` runs `build`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from uino_deploy.bundle.plans import Gpu, PluginRoute, Profile, compute_capability
from uino_deploy.child import Note
from uino_deploy.errors import BuildError, DependencyError, InputError, UinoDeployError
from uino_deploy.export.graph_reader import without_functions
from uino_deploy.files import atomic_file
from uino_deploy.inputs import read_regular
from uino_deploy.runtime.cuda_memory import check, import_cudart

Backend = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_MOST_TIMINGS = 1 << 30  # bytes of a timing cache
_FLOATS = ("FLOAT", "HALF", "BF16")
_MATRIX_LAYERS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")


class Job(msgspec.Struct, kw_only=True):
    """The engine to build.

    Attributes:
        backend: tensorrt or tensorrt-rtx.
        onnx: the piece's file; external weights lie beside it.
        plan: the file to write.
        arch: target such as "sm_89"; for `tensorrt` it must be this machine's GPU.
        shapes: the least, usual and largest shape of each input with dynamic dimensions.
        workspace: limit of the builder's scratch memory in bytes; its own if None.
        tf32: let fp32 products round their operands to TF32.
        timing_cache: file to read and write tactic timings; none if None.
        plugins: build our operators as plugins, not from their portable ONNX functions.
        kernels: folder of compiled kernels for the plugins; None without one.
        environment: additional environment variables of the process.
    """

    backend: Backend
    onnx: str
    plan: str
    arch: str
    shapes: Profile
    workspace: int | None = None
    tf32: bool = False
    timing_cache: str | None = None
    plugins: bool = False
    kernels: str | None = None
    environment: dict[str, str] = msgspec.field(default_factory=dict)


class Outcome(msgspec.Struct, kw_only=True):
    """The result of a build.

    Attributes:
        version: the library's version.
        error: why the build failed; empty on success.
        hint: what to do about the error.
        kind: the kind of error.
        layers: number of network layers by the float type of their (first) output.
        matrix_layers: the same for matrix products and convolutions only; a product of two
            dequantised operands counts under their stored type.
        plugins: names of the network's plugin layers, which are those of the ONNX file's nodes.
        route: how our operators were built, if the piece has any.
        inspector: the engine inspector's answer in JSON; empty if the engine cannot run here.
        gpu: the GPU that it was built on; None without one.
        seconds: time that the parser and the builder took.
        host_memory: their peak memory in bytes; None if the platform does not report it.
    """

    version: str
    error: str = ""
    hint: str = ""
    kind: Literal["build", "dependency", "input"] = "build"
    layers: dict[str, int] = msgspec.field(default_factory=dict)
    matrix_layers: dict[str, int] = msgspec.field(default_factory=dict)
    plugins: list[str] = msgspec.field(default_factory=list)
    route: PluginRoute = "function"
    inspector: str = ""
    gpu: Gpu | None = None
    seconds: float = 0.0
    host_memory: int | None = None


class Progress(msgspec.Struct, kw_only=True):
    """A phase of the builder and its progress."""

    phase: str
    step: int
    steps: int


def build(job: Any, note: Note) -> Outcome:
    """Build an engine as a child's job; each note is a `Progress`."""
    return run(msgspec.convert(job, Job), note)


def run(job: Job, note: Note = lambda _note: None) -> Outcome:
    """Build an engine and write its plan.

    Args:
        job: what to build.
        note: called with a `Progress` after each step of an outermost phase.
    """
    trt: Any = importlib.import_module(MODULES[job.backend])
    outcome = Outcome(version=trt.__version__)
    try:
        _build(trt, job, outcome, note)
    except UinoDeployError as error:
        outcome.error, outcome.hint = error.what, error.hint
        if isinstance(error, DependencyError):
            outcome.kind = "dependency"
        elif isinstance(error, InputError):
            outcome.kind = "input"
    return outcome


def _build(trt: Any, job: Job, outcome: Outcome, note: Note) -> None:
    """Build and fill in the outcome.

    Raises:
        UinoDeployError: the build failed.
    """
    if job.backend == "tensorrt":
        outcome.gpu = _this_gpu(job.arch)
    if job.plugins:
        outcome.route = _register(job)
    log = _logger(trt)
    started = time.monotonic()
    builder = _made(lambda: trt.Builder(log), "builder", log)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, job, network, log)
    _fix_sizes(network, job.shapes)
    outcome.layers, outcome.matrix_layers = _count(trt, network)
    outcome.plugins = _plugins(trt, network)
    config = _config(trt, builder, job, log, note)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(log.last_error or "the builder returned no engine and no reason")
    outcome.seconds = time.monotonic() - started
    outcome.host_memory = _peak_memory()
    Path(job.plan).write_bytes(memoryview(plan))
    if job.timing_cache:
        cache = config.get_timing_cache().serialize()
        with atomic_file(job.timing_cache, force=True) as path:
            path.write_bytes(memoryview(cache))
    outcome.inspector = _inspect(trt, job, log, plan)


def _made(make: Callable[[], Any], what: str, log: Any) -> Any:
    """Return the object that TensorRT creates; if it fails, its bindings raise TypeError.

    Raises:
        BuildError: TensorRT failed; the message is its last error.
    """
    try:
        return make()
    except TypeError as error:
        raise BuildError(
            f"TensorRT cannot create a {what}: {log.last_error or error}",
            "is the driver installed?",
        ) from error


def _peak_memory() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _register(job: Job) -> PluginRoute:
    from uino_deploy.kernels.plugins import register_plugins

    return register_plugins(job.arch, None if job.kernels is None else Path(job.kernels))


def _this_gpu(arch: str) -> Gpu:
    """Describe the GPU that TensorRT will build for.

    Raises:
        DependencyError: cuda-python, the driver or the GPU is missing.
        CudaError: CUDA fails on the GPU.
        InputError: the GPU is not of the requested architecture.
    """
    cuda = import_cudart()

    def ask(call: Any, *arguments: Any) -> Any:
        try:
            return check(call(*arguments), "asking for the GPU")
        except DependencyError as error:
            raise DependencyError(
                f"no GPU can be used: {error.what}",
                "tensorrt builds on the machine that has the GPU; tensorrt-rtx needs none",
            ) from error

    properties = ask(cuda.cudaGetDeviceProperties, 0)
    capability = f"{properties.major}.{properties.minor}"
    gpu = Gpu(
        name=properties.name.decode(),
        capability=capability,
        driver=ask(cuda.cudaDriverGetVersion),
        runtime=ask(cuda.cudaRuntimeGetVersion),
    )
    if capability != compute_capability(arch):
        here = f"sm_{properties.major}{properties.minor}"
        raise InputError(
            f"--arch {arch}: TensorRT builds for this machine's GPU, {gpu.name}, which is {here}",
            f"use --arch {here}, or build on the machine with {arch}",
        )
    return gpu


def _network_flags(trt: Any) -> int:
    """Return the flags for a strongly typed network; in 11.x and RTX it is always so."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _parse(trt: Any, job: Job, network: Any, log: Any) -> None:
    parser = _made(lambda: trt.OnnxParser(network, log), "parser", log)
    if job.plugins:
        # Up to 10.6 the parser uses an ONNX function if there is one; later versions use it
        # if they do not find the plugin. Without functions, a missing plugin is an error.
        parsed = parser.parse(without_functions(Path(job.onnx)), job.onnx)
    else:
        parsed = parser.parse_from_file(job.onnx)
    if not parsed:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        words = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors]
        raise BuildError("; ".join(words) or log.last_error or "the parser gave no reason")


def ranging(shapes: Profile) -> Profile:
    """Return the inputs whose size ranges; the others have one shape, and need no profile."""
    return {name: sizes for name, sizes in shapes.items() if sizes[0] != sizes[2]}


def _fix_sizes(network: Any, shapes: Profile) -> None:
    """Make dimensions of one size static.

    With dynamic ones, the inspector of 10.x may name no types, and a plugin's module is loaded
    again at every change of shape and never unloaded (NVIDIA/TensorRT#4849).
    """
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in shapes:
            least, _, largest = shapes[tensor.name]
            pairs = zip(least, largest, strict=True)
            tensor.shape = tuple(low if low == high else -1 for low, high in pairs)


def _config(trt: Any, builder: Any, job: Job, log: Any, note: Note) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt, note)
    if not job.tf32:
        # On by default in every version; the inspector reports such layers as FLOAT.
        config.clear_flag(trt.BuilderFlag.TF32)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    ranges = ranging(job.shapes)
    if ranges:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in ranges.items():
            profile.set_shape(name, least, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT refuses the range of {', '.join(ranges)}: "
                f"{log.last_error or 'it gives no reason'}",
                "give another range with --shapes",
            )
    if job.backend == "tensorrt-rtx":
        target = getattr(trt.ComputeCapability, job.arch.replace("_", "").upper())
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
    if job.timing_cache:
        _use_timings(config, Path(job.timing_cache))
    return config


def _use_timings(config: Any, path: Path) -> None:
    """Load the timings of a file.

    Raises:
        InputError: the file belongs to another TensorRT version or GPU.
    """
    cache = config.create_timing_cache(
        read_regular(path, "timing cache", _MOST_TIMINGS) if path.exists() else b""
    )
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(
            f"--timing-cache {path} belongs to another TensorRT version or GPU",
            "give another file; it will be created",
        )


def _count(trt: Any, network: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Count the parsed layers, and the matrix products among them, by float type."""
    every: Counter[str] = Counter()
    matrix: Counter[str] = Counter()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = _restorers(layers)
    for layer in layers:
        name = layer.get_output(0).dtype.name if layer.num_outputs else ""
        if name in _FLOATS and layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.CAST):
            every[name] += 1
            if layer.type.name in _MATRIX_LAYERS:
                matrix[_stored_type(layer, makers) or name] += 1
    return dict(every), dict(matrix)


def _restorers(layers: Sequence[Any]) -> dict[str, Any]:
    """Return, by its output, every layer that dequantises or reshapes; empty without the former."""
    kept = [each for each in layers if each.type.name in ("DEQUANTIZE", "SHUFFLE")]
    if not any(each.type.name == "DEQUANTIZE" for each in kept):
        return {}
    return {each.get_output(0).name: each for each in kept}


def _stored_type(layer: Any, makers: Mapping[str, Any]) -> str:
    """Return the type that both operands of a product were dequantised from; empty if not so."""
    kinds = set()
    for index in range(2 if makers and layer.type.name == "MATRIX_MULTIPLY" else 0):
        maker = makers.get(layer.get_input(index).name)
        while maker is not None and maker.type.name == "SHUFFLE":  # aligns the operands' ranks
            maker = makers.get(maker.get_input(0).name)
        kinds.add("" if maker is None else str(maker.get_input(0).dtype.name))
    return kinds.pop() if len(kinds) == 1 else ""


def _plugins(trt: Any, network: Any) -> list[str]:
    """Return the names of the layers that the parser made plugins."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]


def _inspect(trt: Any, job: Job, log: Any, plan: Any) -> str:
    """Return the inspector's JSON; empty for an RTX engine that cannot be loaded here.

    Raises:
        BuildError: TensorRT cannot load the engine that it has just built.
    """
    runtime = _made(lambda: trt.Runtime(log), "runtime", log)
    if job.backend == "tensorrt-rtx":
        validity, _diagnostics = runtime.get_engine_validity(memoryview(plan))
        if validity == trt.EngineValidity.INVALID:
            return ""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"the engine cannot be loaded: {log.last_error or 'no reason given'}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is imported at run time
        """A logger that keeps the last error and passes warnings to stderr."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            failed = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if failed:
                self.last_error = message
            if failed or severity == trt.ILogger.WARNING:
                sys.stderr.write(message.rstrip() + "\n")

    return Logger()


def _monitor(trt: Any, note: Note) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        """A monitor that reports the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                note(Progress(phase=phase, step=step + 1, steps=self.steps[phase]))
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
