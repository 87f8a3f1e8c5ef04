"""The range of what every node takes and gives, and its work, seen while the float32 blocks run."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from uino_deploy.export.forecast.blocks import Block
from uino_deploy.export.forecast.chain import Chain
from uino_deploy.export.forecast.flops import Shapes, flops_of
from uino_deploy.export.forecast.rounding import SMALLEST_NORMAL, float_operands

Array = npt.NDArray[Any]

PERCENTILE = 99.99
# A percentile of a larger tensor is that of evenly spaced elements.
SAMPLED = 1 << 20


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The magnitudes of a tensor's elements, the worst of all images.

    Attributes:
        largest: the largest magnitude; None if one is not finite.
        high: the 99.99th percentile of the magnitudes.
        subnormal: share of elements that float16 holds with fewer bits, or as zero, by type.
    """

    largest: float | None
    high: float
    subnormal: dict[str, float]

    def beyond(self, limit: float) -> bool:
        """Return whether a type with this largest value cannot hold it."""
        return self.largest is None or self.largest > limit


class NodeRange(NamedTuple):
    """What a node takes, its constants and what it gives; None where there is nothing.

    Attributes:
        takes: activations.
        weights: constants.
        gives: outputs.
        flops: additions and multiplications for one image.
        elements: of its outputs, for one image.
    """

    takes: Range | None
    weights: Range | None
    gives: Range
    flops: int
    elements: int


def measure_ranges(chain: Chain) -> dict[str, NodeRange]:
    """Run every block with all its tensors open; return the range of each node by name."""
    found: dict[str, NodeRange] = {}
    for block in chain.blocks:
        ranges, shapes = _tensors(chain, block)
        for node in block.nodes:
            taken = [name for _, name in float_operands(block, node.proto)]
            constants = [name for name in taken if name in block.constants]
            found[node.name] = NodeRange(
                _joined([ranges[name] for name in taken if name not in constants]),
                _joined([ranges[name] for name in constants]),
                _joined([ranges[n] for n in node.proto.output if n in ranges]) or _EMPTY,
                flops_of(node.proto, shapes),
                sum(prod(shapes[name]) for name in node.proto.output if name in shapes),
            )
    return found


def range_of(values: Array) -> Range:
    """Return the range of an array's elements."""
    magnitudes = np.abs(values.reshape(-1), dtype=np.float32)
    if not magnitudes.size:
        return _EMPTY
    largest = float(magnitudes.max())
    some = magnitudes[:: -(-magnitudes.size // SAMPLED)]
    place = min(some.size - 1, int(some.size * PERCENTILE / 100))
    nonzero = magnitudes != 0
    return Range(
        largest=largest if np.isfinite(largest) else None,
        high=float(np.partition(some, place)[place]),
        subnormal={
            kind: float(np.count_nonzero(nonzero & (magnitudes < least)) / magnitudes.size)
            for kind, least in SMALLEST_NORMAL.items()
        },
    )


_EMPTY = Range(largest=0.0, high=0.0, subnormal=dict.fromkeys(SMALLEST_NORMAL, 0.0))


def _joined(ranges: list[Range]) -> Range | None:
    """Return the worst of some ranges; None of none."""
    if not ranges:
        return None
    largest = [each.largest for each in ranges]
    return Range(
        largest=None if None in largest else max(each for each in largest if each is not None),
        high=max(each.high for each in ranges),
        subnormal={k: max(each.subnormal[k] for each in ranges) for k in ranges[0].subnormal},
    )


def _tensors(chain: Chain, block: Block) -> tuple[dict[str, Range], Shapes]:
    """Return the ranges and shapes of a block's float tensors."""
    opened = onnx.ModelProto()
    opened.CopyFrom(block.model)
    made = [n for node in block.model.graph.node for n in node.output
            if block.types.get(n) == TensorProto.FLOAT]  # fmt: skip
    del opened.graph.output[:]
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made
    )
    session = chain.open(opened)
    seen: dict[str, list[Range]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for place in chain.places(block):
        feeds = chain.inputs(block, place)
        for name, array in {
            **feeds,
            **dict(zip(made, session.run(made, feeds), strict=True)),
        }.items():
            shapes[name] = array.shape
            seen.setdefault(name, []).append(range_of(array))
    for name, tensor in block.constants.items():
        shapes[name] = tuple(tensor.dims)
        if tensor.data_type == TensorProto.FLOAT:
            seen[name] = [range_of(numpy_helper.to_array(tensor))]
    return {name: joined for name, each in seen.items() if (joined := _joined(each))}, shapes
