"""An exported piece cut into blocks, such as one encoder layer, each an ONNX model of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.bundle.checked import checked_copy
from uino_deploy.errors import InputError
from uino_deploy.export.onnx_writer import register_schemas
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.pipeline import CLASS, QUERY

# The order in which the pieces are forecast: a class is enrolled, then a query is segmented.
ORDER = tuple(dict.fromkeys((*CLASS.pieces, *QUERY.pieces)))
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
# These move values and compute nothing: they have the type of what they are given.
MOVES = frozenset(
    [
        *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    ]
)
_REPEATED = re.compile(r"(.*?\.(?:blocks|transformer\.layers)\.\d+)(?:\.|$)")
_NESTED = frozenset({"hypercorrelation", "transformer"})
# A parameter in a piece: its wrappers, its module and its own name.
_PARAMETER = re.compile(r"part\.(?:encoder\.|generator\.|decoder\.)?(.+)\.[^.]+")


@dataclass(frozen=True)
class Node:
    """A node that computes in floating point.

    Attributes:
        name: in the joined query, such as "encoder/node_MatMul_50".
        operator: its ONNX operator, such as "MatMul".
        layer: the module whose parameters it takes or that surrounds it, such as
            "encoder.blocks.0.mlp.fc2".
        block: the block that it is in.
        proto: as it stands in the piece.
    """

    name: str
    operator: str
    layer: str
    block: str
    proto: NodeProto

    @property
    def product(self) -> bool:
        """Whether it is a matrix product or a convolution."""
        return self.operator in PRODUCTS

    @property
    def heavy(self) -> bool:
        """Whether it is a product or one of our operators."""
        return self.product or self.proto.domain == DOMAIN


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a piece, with what they take and give.

    Attributes:
        name: such as "encoder.blocks.0".
        piece: the piece that it is cut from.
        takes: names in the piece of the tensors that it needs.
        gives: names in the piece of its tensors that later blocks or the piece's outputs need.
        nodes: its nodes that compute.
        types: element type of each of the piece's tensors.
        model: the block as a model, with its weights.
    """

    name: str
    piece: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, int]
    model: onnx.ModelProto

    @property
    def constants(self) -> dict[str, TensorProto]:
        """Its weights and other constants by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}


def read_blocks(bundle: Bundle) -> list[Block]:
    """Cut all pieces of a float32 bundle into blocks, in the order of `ORDER`.

    Raises:
        InputError: a piece is not float32.
        BundleError: a file was changed.
    """
    for name in ORDER:
        precision = bundle.piece(name).precision
        if precision != "fp32":
            raise InputError(
                f"{bundle.root}: piece {name} is {precision}, and a forecast starts from float32",
                "give the checkpoint, or a bundle exported without --precision",
            )
    return [block for name in ORDER for block in _cut(bundle, bundle.piece(name))]


def _cut(bundle: Bundle, piece: Piece) -> list[Block]:
    with checked_copy(bundle, piece) as graph:
        return cut_piece(piece.name, onnx.load(graph))


def cut_piece(piece: str, model: onnx.ModelProto) -> list[Block]:
    """Cut a piece into blocks.

    Args:
        piece: its name.
        model: float32, with its weights.
    """
    nodes, layers = list(model.graph.node), layers_of(piece, model.graph)
    types = element_types(model)
    starts = _starts(nodes, [_block_of(layer) for layer in layers])
    blocks = []
    for begin, end in zip(starts, [*starts[1:], len(nodes)], strict=True):
        heavy = (i for i in range(begin, end) if _is_heavy(nodes[i]))
        name = _block_of(layers[next(heavy, begin)])
        blocks.append(
            Block(
                name=name,
                piece=piece,
                takes=(takes := _taken(nodes[begin:end], model.graph)),
                gives=(gives := _given(nodes[begin:end], nodes[end:], model.graph)),
                nodes=tuple(
                    Node(f"{piece}/{node.name}", node.op_type, layer, name, node)
                    for node, layer in zip(nodes[begin:end], layers[begin:end], strict=True)
                    if computes(node, types)
                ),
                types=types,
                model=_part(model, nodes[begin:end], takes, gives, types),
            )
        )
    return blocks


def computes(node: NodeProto, types: Mapping[str, int]) -> bool:
    """Return whether a node computes in floating point, and does not only move values."""
    return node.op_type not in MOVES and types.get(node.output[0]) == TensorProto.FLOAT


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph, by name."""
    register_schemas()
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.ByteSize() > 1 << 16:  # values of shapes matter, those of weights do not
            tensor.ClearField("raw_data")
    graph = onnx.shape_inference.infer_shapes(bare).graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = value.type.tensor_type.elem_type
    return known


def layers_of(piece: str, graph: onnx.GraphProto) -> list[str]:
    """Return each node's layer: the module of its parameters, else that of the node before it.

    A product whose weight the exporter folded has that of the bias added to its result.
    """
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    layers, last = [], piece
    for node in graph.node:
        after = [user for name in node.output for user in users.get(name, [])]
        own = _module(piece, node.input)
        if not own and node.op_type in PRODUCTS and len(after) == 1:
            own = _module(piece, after[0].input) if after[0].op_type == "Add" else ""
        layers.append(own or last)
        # What follows a leaf such as attn.qkv, without parameters, belongs to attn.
        last = (own.rpartition(".")[0] if own.count(".") > 1 else own) or last
    return layers


def _module(piece: str, names: Iterable[str]) -> str:
    """Return the innermost module that has all the parameters among some tensors."""
    found = (_PARAMETER.fullmatch(name) for name in names)
    modules = [[piece, *each[1].split(".")] for each in found if each]
    if not modules:
        return ""
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return ".".join(parts[0] for parts in shared)


def _block_of(layer: str) -> str:
    repeated = _REPEATED.match(layer)
    if repeated:
        return repeated[1]
    parts = layer.split(".")
    return ".".join(parts[: 3 if parts[1:2] and parts[1] in _NESTED else 2])


def _starts(nodes: Sequence[NodeProto], keys: Sequence[str]) -> list[int]:
    """Return where blocks begin: at the first node of each module that has a heavy node."""
    heavy = {key for node, key in zip(nodes, keys, strict=True) if _is_heavy(node)}
    starts, seen = [0], {keys[0]}
    for index, key in enumerate(keys):
        if key in heavy - seen:
            seen.add(key)
            if any(_is_heavy(node) for node in nodes[starts[-1] : index]):
                starts.append(index)
    return starts


def _is_heavy(node: NodeProto) -> bool:
    return node.op_type in PRODUCTS or node.domain == DOMAIN


def _taken(nodes: Sequence[NodeProto], graph: onnx.GraphProto) -> tuple[str, ...]:
    made = {name for node in nodes for name in node.output}
    made |= {tensor.name for tensor in graph.initializer}
    return tuple(dict.fromkeys(n for node in nodes for n in node.input if n and n not in made))


def _given(
    nodes: Sequence[NodeProto], later: Sequence[NodeProto], graph: onnx.GraphProto
) -> tuple[str, ...]:
    wanted = {name for node in later for name in node.input}
    wanted |= {value.name for value in graph.output}
    return tuple(name for node in nodes for name in node.output if name in wanted)


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[NodeProto],
    takes: Sequence[str],
    gives: Sequence[str],
    types: Mapping[str, int],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [_value(name, types) for name in takes],
        [_value(name, types) for name in gives],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    return helper.make_model(
        graph,
        functions=[function for function in model.functions if function.name in called],
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _value(name: str, types: Mapping[str, int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, types[name], None)


def integers(node: NodeProto) -> dict[str, int]:
    """Return a node's integer attributes."""
    return {a.name: a.i for a in node.attribute if a.type == AttributeProto.INT}
