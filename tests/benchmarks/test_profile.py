"""The profiler's events: a layer's own time, its share, and a trace that viewers open."""

import json

import pytest

from uino_deploy.benchmarks.profile import (
    exclusive,
    one_after_the_other,
    profile_pieces,
    summarise_nodes,
    trace_events,
)
from uino_deploy.benchmarks.runners.bundle import BundleRunner
from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.runtime.session import LayerTime


def node(name: str, ts: int, dur: int, tid: int = 1) -> dict:
    return {
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "tid": tid,
        "args": {"op_name": name},
    }


def test_time_inside_a_body_is_not_counted_twice():
    nodes = [node("Scan", 0, 100), node("Mul", 10, 30), node("Add", 50, 40), node("Conv", 100, 7)]
    assert exclusive(nodes) == [30, 30, 40, 7]
    # Of two levels, a body within a body; another thread's nodes are not inside.
    nodes = [node("If", 0, 50), node("Scan", 5, 40), node("Mul", 6, 10), node("Add", 6, 10, tid=2)]
    assert exclusive(nodes) == [10, 30, 10, 10]


def test_calls_and_seconds_are_of_one_run():
    nodes = [node("MatMul", 0, 100), node("MatMul", 200, 300), node("MultiHeadAttention", 600, 400)]
    found = {layer["operator"]: layer for layer in summarise_nodes("encoder", nodes, runs=2)}
    assert found["MatMul"]["calls"] == 1
    assert found["MatMul"]["seconds"] == pytest.approx(200e-6)
    assert [found[name]["attention"] for name in ("MatMul", "MultiHeadAttention")] == [False, True]


def test_a_trace_has_complete_events_from_zero_on():
    title, *events = trace_events(3, "decoder", [node("Conv", 1000, 5), node("Add", 1010, 2)])
    assert title == {"ph": "M", "name": "process_name", "pid": 3, "args": {"name": "decoder"}}
    assert [(e["ph"], e["pid"], e["ts"], e["dur"]) for e in events] == [
        ("X", 3, 0, 5),
        ("X", 3, 10, 2),
    ]


def test_layers_without_a_start_follow_one_another():
    layers = [LayerTime("a", "MatMul", 1e-6), LayerTime("b", "MHA", 3e-6)]
    first = one_after_the_other(layers, [])
    nodes = [*first, *one_after_the_other(layers, first)]
    assert [node["ts"] for node in nodes] == pytest.approx([0, 1, 4, 5])
    assert exclusive(nodes) == pytest.approx([1, 3, 1, 3])
    found = {layer["operator"]: layer for layer in summarise_nodes("encoder", nodes, runs=2)}
    assert found["MHA"]["seconds"] == pytest.approx(3e-6)
    assert [found[name]["attention"] for name in ("MatMul", "MHA")] == [False, True]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_real_profile_adds_up(bundle_path, tmp_path, backend):
    pytest.importorskip(backend)
    task = Task(
        runner=backend, precision="fp32", threads=1, image_size=112, work=str(tmp_path),
        scratch=str(tmp_path), bundle=str(bundle_path), model="",
    )  # fmt: skip
    trace = tmp_path / "trace.json"
    layers = profile_pieces(BundleRunner(task), task, trace)
    assert {layer["piece"] for layer in layers} == {"encoder", "adapter", "prompt", "decoder"}
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["pid"] for event in events} == {0, 1, 2, 3}
    known = {each["operator"]: each for each in layers if each["piece"] == "encoder"}
    attentions = [each["calls"] for each in known.values() if each["attention"]]
    alone = known["Softmax"]["calls"] if "Softmax" in known else 0
    assert sum(attentions) + alone == 6, "the depth of tiny's encoder"
    if backend == "openvino":  # its layers do not overlap, nor hold each other
        told = sum(event["dur"] for event in events) / 5
        assert sum(layer["seconds"] for layer in layers) == pytest.approx(told / 1e6)
