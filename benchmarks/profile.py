"""A profile of a bundle, layer by layer, from each backend's own profiler.

Time in a layer inside another one (a step of a Scan) counts for the inner layer only, if the
profiler shows it, as ONNX Runtime's does. OpenVINO and TensorRT report how long a layer took, but
not when; in the trace each starts where the previous one ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy.benchmarks.plan import PORTABLE
from uino_deploy.benchmarks.runners.bundle import BundleRunner
from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.reference import inputs_of, load_example
from uino_deploy.kernels import native
from uino_deploy.pipeline import QUERY
from uino_deploy.runtime.onnxruntime_providers import CPU, PROVIDERS
from uino_deploy.runtime.session import LayerTime

if TYPE_CHECKING:
    from uino_deploy.runtime.openvino_backend import OpenVinoBackend
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

# Words in the names of operators, and of TensorRT's layers, that mean a whole attention.
_ATTENTION = ("attention", "mha", "sdpa")
_WARMUP = 2
_RUNS = 5
_ERRORS_ONLY = 3

Event = dict[str, Any]


def profile_pieces(runner: BundleRunner, task: Task, trace: Path) -> list[dict[str, Any]]:
    """Profile the pieces of a query on the example stored in the bundle.

    Args:
        runner: holds the bundle.
        task: names the provider and the threads.
        trace: receives one query's layers, a Chrome trace that Perfetto opens.

    Returns:
        The fields of a `record.Layer` for each operator of each piece, the longest first.
    """
    bundle = runner.predictor.bundle
    example = load_example(bundle)
    layers, events = [], []
    for number, name in enumerate(QUERY.pieces):
        feeds = inputs_of(bundle.piece(name), example)
        nodes = _profile(bundle, name, feeds, task)
        layers += summarise_nodes(name, nodes, _RUNS)
        events += trace_events(number, name, nodes)
    trace.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    total = sum(layer["seconds"] for layer in layers)
    for layer in layers:
        layer["share"] = layer["seconds"] / total if total else 0.0
    return sorted(layers, key=lambda layer: -float(layer["seconds"]))


def summarise_nodes(piece: str, nodes: Sequence[Event], runs: int) -> list[dict[str, Any]]:
    """Add up the calls of each operator.

    Args:
        piece: the piece that the nodes belong to.
        nodes: the profiler's events of all `runs` runs.
        runs: number of runs of the piece.
    """
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for node, alone in zip(nodes, exclusive(nodes), strict=True):
        operator = node["args"]["op_name"]
        seconds[operator] = seconds.get(operator, 0.0) + alone / 1e6
        calls[operator] = calls.get(operator, 0) + 1
    return [
        {
            "piece": piece,
            "operator": operator,
            "calls": calls[operator] / runs,
            "seconds": seconds[operator] / runs,
            "share": 0.0,
            "attention": any(word in operator.lower() for word in _ATTENTION),
        }
        for operator in seconds
    ]


def exclusive(nodes: Sequence[Event]) -> list[float]:
    """Return each event's own microseconds, without those of the events inside it, per thread."""
    own = [float(node["dur"]) for node in nodes]
    by_start = sorted(range(len(nodes)), key=lambda i: (nodes[i]["ts"], -nodes[i]["dur"]))
    around: dict[int, list[int]] = {}
    for index in by_start:
        node = nodes[index]
        stack = around.setdefault(node["tid"], [])
        while stack and nodes[stack[-1]]["ts"] + nodes[stack[-1]]["dur"] <= node["ts"]:
            stack.pop()
        if stack:
            own[stack[-1]] -= node["dur"]
        stack.append(index)
    return [max(0.0, span) for span in own]


def trace_events(number: int, piece: str, nodes: Sequence[Event]) -> list[Event]:
    """Return Chrome trace events: the piece as a process, its time starting at its first layer."""
    title = {"ph": "M", "name": "process_name", "pid": number, "args": {"name": piece}}
    begun = min((node["ts"] for node in nodes), default=0)
    return [
        title,
        *(
            {
                "ph": "X",
                "name": node["args"]["op_name"],
                "cat": piece,
                "pid": number,
                "tid": node["tid"],
                "ts": node["ts"] - begun,
                "dur": node["dur"],
                "args": {"node": node["name"].removesuffix("_kernel_time")},
            }
            for node in nodes
        ),
    ]


def _profile(bundle: Bundle, piece: str, feeds: dict[str, Any], task: Task) -> list[Event]:
    """Run a piece with the profiler on; return the events of the runs after the warm-up."""
    backend, _, provider = task.runner.removesuffix(PORTABLE).partition(":")
    portable = task.runner.endswith(PORTABLE)
    if backend == "onnxruntime":
        return _in_onnxruntime(bundle, piece, feeds, task, provider or "cpu", portable)
    session = _profiled(backend, task.threads, portable).load(bundle, piece)
    events: list[Event] = []
    for run in range(_WARMUP + _RUNS):
        session.run(feeds)
        if run >= _WARMUP:
            events += one_after_the_other(session.layers(), events)
    return events


def _profiled(backend: str, threads: int, portable: bool) -> OpenVinoBackend | TensorRtBackend:
    """Return a backend that times its layers."""
    if backend == "openvino":
        from uino_deploy.runtime.openvino_backend import OpenVinoBackend

        # Cached pieces were compiled without the profiler.
        return OpenVinoBackend(threads, cache=False, profile=True, portable=portable)
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

    return TensorRtBackend(
        "tensorrt-rtx" if backend == "tensorrt-rtx" else "tensorrt", profile=True
    )


def one_after_the_other(layers: Sequence[LayerTime], before: Sequence[Event]) -> list[Event]:
    """Return a run's layers as events that begin where the events before them end."""
    begun = before[-1]["ts"] + before[-1]["dur"] if before else 0.0
    events = []
    for layer in layers:
        span = 1e6 * layer.seconds
        args = {"op_name": layer.operator}
        events.append({"name": layer.name, "ts": begun, "dur": span, "tid": 0, "args": args})
        begun += span
    return events


def _in_onnxruntime(
    bundle: Bundle, piece: str, feeds: dict[str, Any], task: Task, provider: str, portable: bool
) -> list[Event]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.log_severity_level = _ERRORS_ONLY
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(task.scratch) / piece)
    library = None if portable or PROVIDERS.get(provider, provider) != CPU else native.loaded()
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    graph = bundle.path(bundle.piece(piece).model)
    session = onnxruntime.InferenceSession(
        graph, options, providers=[PROVIDERS.get(provider, provider)]
    )
    for _ in range(_WARMUP + _RUNS):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    begun = runs[_WARMUP]
    return [e for e in events if e.get("cat") == "Node" and e["ts"] >= begun and e.get("dur")]
