"""Floors of an encoder's time on GPUs, by what it multiplies in: `python -m ... floors BUNDLE`.

A floor is a bound from a board's data sheet that no engine can beat, never a prediction: either
every product runs at the peak rate of its type, or the weights are read once at the full bandwidth,
whichever takes longer. Norms, softmax and launches cost nothing here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from uino_deploy.benchmarks.ledger.boards import BOARDS, Board
from uino_deploy.bundle import Bundle
from uino_deploy.errors import InputError
from uino_deploy.export.audit import FP8_SINCE
from uino_deploy.export.forecast.flops import flops_of
from uino_deploy.export.graph_reader import read_graph
from uino_deploy.markdown import table

# The data sheets give int8, and fp8 from Ada and Hopper on, twice float16's dense rate: 170 sparse
# INT8 TOPS of AGX Orin's GPU, 485 of L4, 3,958 of H100, 1,035 sparse FP8 TFLOPS of Thor.
_SHOWN = {
    *("Jetson Orin Nano 8GB Super", "Jetson AGX Orin 64GB", "Jetson AGX Thor T5000"),
    *("L4", "H100 SXM"),
}
_NAMES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 17: "FP8"}
_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1}


@dataclass(frozen=True)
class Work:
    """What one image takes.

    Attributes:
        weights: how many elements lie in the file, by type.
        operations: of matrix products and convolutions, two for a multiplication and an addition,
            by the type of the operands.
    """

    weights: Mapping[str, int]
    operations: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """The weights' bytes."""
        return sum(count * _BYTES[kind] for kind, count in self.weights.items())

    def with_types(self, types: Mapping[str, str]) -> Work:
        """Return the same work with some types in place of others."""
        made = []
        for counted in (self.weights, self.operations):
            changed = Counter[str]()
            for kind, count in counted.items():
                changed[types.get(kind, kind)] += count
            made.append(dict(changed))
        return Work(*made)


def count_work(bundle: Bundle, piece: str = "encoder") -> Work:
    """Count a piece's weights and operations for one image."""
    path = bundle.path(bundle.piece(piece).model)
    model = onnx.load(path, load_external_data=False)
    quantised = read_graph(path).quantised
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    types, shapes = _tensors(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    operations = Counter[str]()
    for node in model.graph.node:
        if count := flops_of(node, shapes):
            operations[quantised.get(node.name, types[node.output[0]])] += count
    weights = Counter[str]()
    for tensor in model.graph.initializer:
        weights[_NAMES.get(tensor.data_type, "")] += prod(tensor.dims)
    return Work({k: n for k, n in weights.items() if k}, dict(operations))


def floor_ms(work: Work, board: Board) -> float | None:
    """Return the least time that a board's data sheet allows, in milliseconds.

    Returns:
        None if the board does not multiply in one of the types.
    """
    if "FP8" in work.operations and int(board.arch.removeprefix("sm_")) < FP8_SINCE:
        return None
    rates = {"FLOAT": board.float32_tflops}  # TF32 is off unless asked for
    computing = sum(
        count / rates.get(kind, board.half_tflops * (2 if kind in ("INT8", "FP8") else 1))
        for kind, count in work.operations.items()
    )
    return max(computing / 1e9, work.bytes / board.bandwidth / 1e6)


def floors(bundles: Sequence[Bundle]) -> str:
    """Return a Markdown table: quantised encoders beside the same ones in float32 and float16."""
    works: dict[str, Work] = {}
    for bundle in bundles:
        work = count_work(bundle)
        own = next((kind for kind in ("INT8", "FP8") if kind in work.operations), "")
        if not own:
            raise InputError(f"{bundle.root} has no quantised encoder", "export with encoder=int8")
        plain = work.with_types({own: "FLOAT", "HALF": "FLOAT"})
        works |= {"fp32": plain, "fp16": plain.with_types({"FLOAT": "HALF"})}
        for rest, kind in (("fp32", "FLOAT"), ("fp16", "HALF")):
            works[f"{own.lower()}, rest {rest}"] = work.with_types({"FLOAT": kind, "HALF": kind})
    boards = [board for board in BOARDS if board.name in _SHOWN]
    head = ["encoder", "weights MB", "GFLOP by type", *(f"{b.name} ms" for b in boards)]
    return table(head, [_row(name, work, boards) for name, work in works.items()])


def _row(name: str, work: Work, boards: Sequence[Board]) -> list[str]:
    counts = sorted(work.operations.items(), key=lambda each: -each[1])
    told = ", ".join(f"{count / 1e9:.0f} {kind}" for kind, count in counts)
    times = (floor_ms(work, board) for board in boards)
    shown = ("no fp8" if each is None else f"{each:.2f}" for each in times)
    return [name, f"{work.bytes / 1e6:.0f}", told, *shown]


def _tensors(graph: onnx.GraphProto) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the types and the shapes of a graph's tensors."""
    types, shapes = dict[str, str](), dict[str, tuple[int, ...]]()
    for value in (*graph.value_info, *graph.input, *graph.output):
        told = value.type.tensor_type
        types[value.name] = _NAMES.get(told.elem_type, "")
        shapes[value.name] = tuple(int(d.dim_value) for d in told.shape.dim)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return types, shapes


def main(arguments: Sequence[str]) -> None:
    """Print the table of some bundles."""
    opened = [Bundle.open(path, require_signature=False) for path in arguments]
    sys.stdout.write(floors(opened))


if __name__ == "__main__":
    main(sys.argv[1:])
