"""`query.onnx`: image to logits in one graph, joined from the exported pieces and their weights.

The pieces' nodes are joined under their pieces' names; a tensor that passes between pieces keeps
its own name. External weights are referred to, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from uino_deploy.bundle import Edge, Piece
from uino_deploy.errors import BuildError
from uino_deploy.export.onnx_writer import check_model
from uino_deploy.pipeline import QUERY, WHOLE


def describe_query(pieces: Mapping[str, Piece]) -> Piece:
    """Describe the joined query: the edges its variant has, and its pieces' one precision.

    If the pieces differ in precision, it is given as fp32; `Bundle.precisions` lists them all.
    """
    joined = [pieces[name] for name in QUERY.pieces]
    inputs = {QUERY.name(edge.name): edge for piece in joined for edge in piece.inputs}
    outputs = {QUERY.name(edge.name): edge for piece in joined for edge in piece.outputs}
    precisions = {piece.precision for piece in joined}
    return Piece(
        name=WHOLE,
        model=f"{WHOLE}.onnx",
        precision=precisions.pop() if len(precisions) == 1 else "fp32",
        inputs=[inputs[name] for name in QUERY.ends.inputs if name in inputs],
        outputs=[outputs[name] for name in QUERY.ends.outputs],
    )


def write_query(pieces: Mapping[str, Piece], folder: Path) -> Path:
    """Join the pieces' files in `folder` into `folder/query.onnx`.

    Raises:
        BuildError: a piece cannot be joined, or the result is not a valid ONNX model.
    """
    models = {
        name: onnx.load(folder / pieces[name].model, load_external_data=False)
        for name in QUERY.pieces
    }
    graph = onnx.GraphProto(name=WHOLE)
    for name, model in models.items():
        _append(graph, name, model.graph)
    whole = describe_query(pieces)
    graph.input.extend(map(_value, whole.inputs))
    graph.output.extend(map(_value, whole.outputs))
    query = onnx.helper.make_model(
        graph,
        functions=[function for model in models.values() for function in model.functions],
        opset_imports=_opsets(models),
        ir_version=max(model.ir_version for model in models.values()),
        producer_name="uino-deploy",
    )
    path = folder / whole.model
    path.write_bytes(query.SerializeToString(deterministic=True))
    check_model(path)
    return path


def _opsets(models: dict[str, onnx.ModelProto]) -> list[onnx.OperatorSetIdProto]:
    versions = {(o.domain, o.version) for model in models.values() for o in model.opset_import}
    if len({domain for domain, _ in versions}) != len(versions):
        raise BuildError(f"the pieces import different opsets: {sorted(versions)}")
    return [onnx.helper.make_opsetid(domain, version) for domain, version in sorted(versions)]


def _append(joined: onnx.GraphProto, piece: str, graph: onnx.GraphProto) -> None:
    """Add a piece's nodes and weights, its inner names under the piece's name."""
    edges = {value.name for value in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        if name in edges:
            return QUERY.name(name)
        return f"{piece}/{name}" if name else ""

    for node in graph.node:
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            raise BuildError(f"piece {piece} has a subgraph outside its functions")
        copy = joined.node.add()
        copy.CopyFrom(node)
        copy.name = f"{piece}/{node.name}"
        copy.input[:] = [renamed(name) for name in node.input]
        copy.output[:] = [renamed(name) for name in node.output]
    for initializer in graph.initializer:
        tensor = joined.initializer.add()
        tensor.CopyFrom(initializer)
        tensor.name = renamed(initializer.name)


def _value(edge: Edge) -> onnx.ValueInfoProto:
    dtype = onnx.TensorProto.FLOAT16 if edge.dtype == "float16" else onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(edge.name, dtype, edge.shape)
