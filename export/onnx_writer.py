"""Export of one piece to one ONNX file: trace, fold, clean, add the portable functions, check."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxscript
import onnxscript.optimizer
import torch
from onnxscript import values

from uino_deploy.bundle import Edge, Piece
from uino_deploy.errors import BuildError
from uino_deploy.export.opsets import IR_VERSION
from uino_deploy.export.pieces import BATCH, SHOTS, PieceModule
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.epilogue import onnx as epilogue
from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.mlp import onnx as norm_mlp
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.kernels.prologue import onnx as prologue
from uino_deploy.kernels.selective_scan import onnx as selective_scan

EXTERNAL_THRESHOLD = 1024
_FOLD_LIMIT = 1 << 31
_TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
_EXAMPLES = {BATCH: 2, SHOTS: 3}

_uino = values.Opset(DOMAIN, VERSION)


def _correlation4d(
    query: Any, support: Any, weight: Any, height: int, width: int, pool: int
) -> Any:
    return _uino.Correlation4d(
        query, support, weight, height=height, width=width, pool=pool, **PLUGIN
    )


def _scan_prologue(volume: Any, *arguments: Any) -> Any:
    *weights, plane = arguments
    channels = int(volume.shape[-1])
    return _uino.ScanPrologue(volume, *weights, plane=plane, channels=channels, **PLUGIN)


def _selective_scan2d(*operands: Any) -> Any:
    return _uino.SelectiveScan2d(*operands, **PLUGIN)


def _scan_epilogue(*arguments: Any) -> Any:
    *operands, plane = arguments
    return _uino.ScanEpilogue(*operands, plane=plane, **PLUGIN)


def _norm_mlp(*operands: Any) -> Any:
    return _uino.NormMlp(*operands, **PLUGIN)


def write_piece(made: PieceModule, folder: Path, opset: int) -> Path:
    """Export a piece to `folder/NAME.onnx`, its large weights to `folder/NAME.weights`.

    Raises:
        BuildError: the exporter failed, or the result is not a valid, typed ONNX model.
    """
    piece = made.piece
    path = folder / piece.model
    model = _cleaned(_traced(made, opset), piece)
    model.functions.extend(operator_functions(model, opset))
    save_model(model, path, f"{piece.name}.weights")
    check_model(path)
    return path


def save_model(model: onnx.ModelProto, path: Path, weights: str) -> None:
    """Write a model, with tensors of `EXTERNAL_THRESHOLD` bytes or more in the file `weights`."""
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=weights,
        size_threshold=EXTERNAL_THRESHOLD,
    )


def check_model(path: Path) -> None:
    """Check a model file and everything it refers to, with strict type and shape inference.

    Raises:
        BuildError: the model is not valid; the message has the checker's first line.
    """
    register_schemas()
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise BuildError(f"{path.name} is not a valid ONNX model: {first}") from error


def register_schemas() -> None:
    """Register the operators with onnx; the exporter refuses nodes without a schema."""
    for module in (correlation, prologue, selective_scan, epilogue, norm_mlp):
        if not onnx.defs.has(module.SCHEMA.name, DOMAIN):
            onnx.defs.register_schema(module.SCHEMA)


def _traced(made: PieceModule, opset: int) -> onnx_ir.Model:
    register_schemas()
    piece = made.piece
    dims = {name: torch.export.Dim(name) for name in _EXAMPLES}
    shapes = [
        {i: dims[d] for i, d in enumerate(edge.shape) if isinstance(d, str)}
        for edge in piece.inputs
    ]
    with _quietly():
        program = torch.onnx.export(
            made.module,
            tuple(_example(edge) for edge in piece.inputs),
            dynamo=True,
            opset_version=opset,
            input_names=[edge.name for edge in piece.inputs],
            output_names=[edge.name for edge in piece.outputs],
            # The forward takes *inputs, one argument to torch.export.
            dynamic_shapes=(tuple(shapes),),
            custom_translation_table={
                torch.ops.uino.correlation4d.default: _correlation4d,
                torch.ops.uino.scan_prologue.default: _scan_prologue,
                torch.ops.uino.selective_scan2d.default: _selective_scan2d,
                torch.ops.uino.scan_epilogue.default: _scan_epilogue,
                torch.ops.uino.norm_mlp.default: _norm_mlp,
            },
            verbose=False,
        )
    if program is None:
        raise BuildError(f"torch.onnx.export returned nothing for piece {piece.name}")
    return program.model


def _example(edge: Edge) -> torch.Tensor:
    size = [d if isinstance(d, int) else _EXAMPLES[d] for d in edge.shape]
    return torch.zeros(size, dtype=getattr(torch, edge.dtype))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the exporter's notes on its internals; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cleaned(model: onnx_ir.Model, piece: Piece) -> onnx.ModelProto:
    """Fold constants and drop the exporter's notes: file paths, source lines, traces."""
    onnxscript.optimizer.fold_constants(
        model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT
    )
    onnxscript.optimizer.remove_unused_nodes(model)
    onnx_ir.passes.common.RemoveUnusedOpsetsPass()(model)
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "uino-deploy", None
    model.graph.name = piece.name
    proto = onnx_ir.to_proto(model)
    _type_edges(proto, piece)
    return proto


def _type_edges(proto: onnx.ModelProto, piece: Piece) -> None:
    """Write the edges' own shapes, and refuse a graph with other types."""
    for values_, edges in ((proto.graph.input, piece.inputs), (proto.graph.output, piece.outputs)):
        names = [value.name for value in values_]
        if names != [edge.name for edge in edges]:
            raise BuildError(f"piece {piece.name} was exported with edges {names}")
        for value, edge in zip(values_, edges, strict=True):
            dtype = _TYPES[edge.dtype]
            if value.type.tensor_type.elem_type != dtype:
                raise BuildError(f"piece {piece.name}: {edge.name} is not {edge.dtype}")
            typed = onnx.helper.make_tensor_value_info(edge.name, dtype, edge.shape)
            value.CopyFrom(typed)


def operator_functions(model: onnx.ModelProto, opset: int) -> list[onnx.FunctionProto]:
    """Return the portable ONNX functions of the operators that a model calls."""
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    dtype = _operator_type(model, nodes)
    functions = []
    grids = [_integers(node) for node in nodes if node.op_type == "Correlation4d"]
    if len(grids) > 1:
        raise BuildError(
            "a model has one ONNX function for Correlation4d, and this one needs several"
        )
    for grid in grids:
        functions.append(
            correlation.portable_function(grid["height"], grid["width"], grid["pool"], dtype, opset)
        )
    for module in (prologue, selective_scan, epilogue, norm_mlp):
        if any(node.op_type == module.SCHEMA.name for node in nodes):
            functions.append(module.portable_function(dtype, opset))
    return functions


def _operator_type(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> int:
    """Return the one element type of the operators' results."""
    infos = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    kinds = {types[node.output[0]] for node in nodes}
    if len(kinds) > 1:
        raise BuildError("a model has one ONNX function for each operator, in one type")
    return kinds.pop() if kinds else onnx.TensorProto.FLOAT


def _integers(node: onnx.NodeProto) -> dict[str, int]:
    return {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
