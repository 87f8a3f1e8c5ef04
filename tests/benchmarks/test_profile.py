"""The profiler's events: a layer's own time, its share, and a trace that viewers open."""

import pytest

from uino_deploy.benchmarks.profile import exclusive, summarise_nodes, trace_events


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
