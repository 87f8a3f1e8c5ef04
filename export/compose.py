"""`query.onnx`: image to logits in one graph, of the exported pieces and their weights.

The pieces' nodes are joined under their pieces' names; a tensor that passes between pieces keeps
its own name. External weights are referred to, not copied.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from uino_deploy.bundle import Precision
from uino_deploy.bundle import Tensor as Edge
from uino_deploy.errors import BuildError
from uino_deploy.export.onnx_writer import check_model
from uino_deploy.export.pieces import Piece

_PIECES = ("encoder", "adapter", "prompt", "decoder")
_QUERY_INPUTS = ("image", "support_deep", "weight", "prototypes", "sparse")
_QUERY_OUTPUTS = ("logits", "iou")


def query_edges(pieces: tuple[Piece, ...]) -> tuple[list[Edge], list[Edge]]:
    """Return the inputs and outputs of the whole query, those that the variant has."""
    joined = [piece for piece in pieces if piece.name in _PIECES]
    inputs = {edge.name: edge for piece in joined for edge in piece.inputs}
    outputs = {edge.name: edge for piece in joined for edge in piece.outputs}
    return (
        [inputs[name] for name in _QUERY_INPUTS if name in inputs],
        [outputs[name] for name in _QUERY_OUTPUTS],
    )


def query_precision(pieces: tuple[Piece, ...]) -> Precision:
    """Return the one precision of the joined pieces, or fp32 where they differ."""
    found = {piece.precision for piece in pieces if piece.name in _PIECES}
    return found.pop() if len(found) == 1 else "fp32"


def write_query(pieces: tuple[Piece, ...], folder: Path) -> Path:
    """Join the pieces' files in `folder` into `folder/query.onnx`.

    Raises:
        BuildError: a piece cannot be joined, or the result is not a valid ONNX model.
    """
    models = {
        name: onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in _PIECES
    }
    graph = onnx.GraphProto(name="query")
    for name, model in models.items():
        _append(graph, name, model.graph)
    inputs, outputs = query_edges(pieces)
    graph.input.extend(_value(edge) for edge in inputs)
    graph.output.extend(_value(edge) for edge in outputs)
    query = onnx.helper.make_model(
        graph,
        functions=[body for model in models.values() for body in model.functions],
        opset_imports=_opsets(models),
        ir_version=models["encoder"].ir_version,
        producer_name="uino-deploy",
    )
    path = folder / "query.onnx"
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
            # The encoder's `deep` is the query's; the other edges have one name throughout.
            return "query_deep" if name == "deep" else name
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
