"""Configurations of models for Triton Inference Server, in protobuf's text format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uino_deploy.bundle import Edge

Shape = Sequence[int | str]

_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "string": "TYPE_STRING"}
_INDENT = "  "


def tensors(kind: str, edges: Sequence[tuple[str, str, Shape]]) -> str:
    """Return a model's inputs or outputs.

    Args:
        kind: `input` or `output`.
        edges: name, type and shape of each; a dimension that is a name is dynamic.
    """
    return "".join(
        block(
            kind,
            f"name: {quoted(name)}",
            f"data_type: {_TYPES[dtype]}",
            f"dims: [ {', '.join(str(d) if isinstance(d, int) else '-1' for d in shape)} ]",
        )
        for name, dtype, shape in edges
    )


def model(name: str, backend: str, inputs: str, outputs: str, *blocks: str) -> str:
    """Return a model that does its own batching: its tensors have all their dimensions."""
    head = f"name: {quoted(name)}\nbackend: {quoted(backend)}\nmax_batch_size: 0\n"
    return head + inputs + outputs + "".join(blocks)


def ensemble(
    name: str,
    inputs: str,
    outputs: str,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
) -> str:
    """Return an ensemble.

    Args:
        name: its name.
        inputs: from `tensors`.
        outputs: likewise.
        steps: of each model its name and, for its inputs and its outputs, what the ensemble calls
            them.
    """
    parts = [
        block(
            "step",
            f"model_name: {quoted(each)}",
            "model_version: -1",
            *(block("input_map", *_pair(*pair)) for pair in taken.items()),
            *(block("output_map", *_pair(*pair)) for pair in given.items()),
        )
        for each, taken, given in steps
    ]
    head = f"name: {quoted(name)}\nplatform: {quoted('ensemble')}\nmax_batch_size: 0\n"
    return head + inputs + outputs + block("ensemble_scheduling", *parts)


def instances(kind: str, count: int) -> str:
    """Return how many instances of a model run, and where: `cpu` or `gpu`."""
    return block("instance_group", f"kind: KIND_{kind.upper()}", f"count: {count}")


def parameter(key: str, value: str) -> str:
    """Return a parameter of a model."""
    return block(
        "parameters", f"key: {quoted(key)}", block("value", f"string_value: {quoted(value)}")
    )


def warm_up(inputs: Mapping[str, tuple[str, Sequence[int]]]) -> str:
    """Return a request of random numbers that the server sends before it is ready.

    Args:
        inputs: type and shape of each.
    """
    parts = [
        block(
            "inputs",
            f"key: {quoted(name)}",
            block(
                "value",
                f"data_type: {_TYPES[dtype]}",
                f"dims: [ {', '.join(map(str, shape))} ]",
                "random_data: true",
            ),
        )
        for name, (dtype, shape) in inputs.items()
    ]
    return block("model_warmup", 'name: "first"', "batch_size: 1", *parts)


def cuda_graphs(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return that launches of these shapes are recorded once and replayed."""
    parts = [
        block(
            "input",
            f"key: {quoted(name)}",
            block("value", f"dim: [ {', '.join(map(str, shape))} ]"),
        )
        for name, shape in shapes.items()
    ]
    spec = block("graph_spec", "batch_size: 0", *parts)
    return block("optimization", block("cuda", "graphs: true", "busy_wait_events: true", spec))


def file_name(name: str) -> str:
    """Return the name of a model's file where it is not the backend's own."""
    return f"default_model_filename: {quoted(name)}\n"


def edges_of(edges: Sequence[Edge]) -> list[tuple[str, str, Shape]]:
    """Return a piece's edges as `tensors` takes them."""
    return [(edge.name, edge.dtype, edge.shape) for edge in edges]


def block(name: str, *parts: str) -> str:
    """Return a message with its fields, each on lines of its own."""
    inner = "".join(
        f"{_INDENT}{line}\n" for part in parts for line in part.rstrip("\n").splitlines()
    )
    return f"{name} {{\n{inner}}}\n"


def quoted(text: str) -> str:
    """Return a string in protobuf's text format."""
    shown = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{shown}"'


def _pair(key: str, value: str) -> tuple[str, str]:
    return f"key: {quoted(key)}", f"value: {quoted(value)}"
