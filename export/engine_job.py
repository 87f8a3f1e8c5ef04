"""One engine built by TensorRT or TensorRT-RTX, in a process of its own.

A parser or builder that aborts takes only that process down. The job comes as JSON on stdin; each
line on stdout is JSON too: progress while it works, the outcome at the end.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec

Backend = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_FLOATS = ("FLOAT", "HALF", "BF16")


class Job(msgspec.Struct, kw_only=True):
    """What to build.

    Attributes:
        backend: which TensorRT.
        onnx: the piece's file; external weights lie beside it.
        plan: the file to write.
        arch: target such as "sm_89"; for `tensorrt` it must be the GPU at hand.
        shapes: for each input with dynamic dimensions its least, usual and largest shape.
        workspace: bytes of scratch memory the builder may plan with; its own limit when None.
        timing_cache: file to read and write tactic timings; none when None.
    """

    backend: Backend
    onnx: str
    plan: str
    arch: str
    shapes: dict[str, tuple[list[int], list[int], list[int]]]
    workspace: int | None = None
    timing_cache: str | None = None


class Outcome(msgspec.Struct, kw_only=True):
    """What came of it.

    Attributes:
        version: of the library.
        error: empty, or why there is no plan.
        layers: number of network layers by the type of their (first) result, floats only.
    """

    version: str
    error: str = ""
    layers: dict[str, int] = msgspec.field(default_factory=dict)


class Progress(msgspec.Struct, kw_only=True):
    """A phase of the builder and how far it is."""

    phase: str
    step: int
    steps: int


def main() -> None:
    """Read a job from stdin, build, print the outcome."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _print({"outcome": run(job)})


def run(job: Job) -> Outcome:
    """Build an engine and write its plan."""
    trt: Any = importlib.import_module(MODULES[job.backend])
    log = _logger(trt)
    outcome = Outcome(version=trt.__version__)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        outcome.error = "; ".join(
            f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors
        )
        return outcome
    outcome.layers = _audit(trt, network)
    config = _config(trt, builder, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        outcome.error = log.last_error or "the builder returned no engine and no reason"
        return outcome
    Path(job.plan).write_bytes(memoryview(plan))
    if job.timing_cache:
        Path(job.timing_cache).write_bytes(memoryview(config.get_timing_cache().serialize()))
    return outcome


def _network_flags(trt: Any) -> int:
    """Strongly typed: 10.x must be asked, 11.x and RTX know nothing else."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _config(trt: Any, builder: Any, job: Job) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.shapes:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in job.shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    if job.backend == "tensorrt-rtx":
        target = getattr(trt.ComputeCapability, job.arch.replace("_", "").upper())
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
    if job.timing_cache:
        path = Path(job.timing_cache)
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        config.set_timing_cache(cache, False)
    return config


def _audit(trt: Any, network: Any) -> dict[str, int]:
    """Count layers by float type: what the parser really made."""
    types: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = layer.get_output(0).dtype.name if layer.num_outputs else ""
        if name in _FLOATS and layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.CAST):
            types[name] += 1
    return dict(types)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is imported at run time
        """Keeps the last error and passes warnings to stderr."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message
            if severity <= trt.ILogger.WARNING:
                sys.stderr.write(message.rstrip() + "\n")

    return Logger()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        """Reports the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                _print({"progress": Progress(phase=phase, step=step + 1, steps=self.steps[phase])})
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
