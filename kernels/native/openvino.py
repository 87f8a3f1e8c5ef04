"""The native operators as OpenVINO operators, whose evaluation calls the library.

OpenVINO's extensions in C++ are bound to one release; these are not. Their attributes are kept in
compiled models, which can only be imported where the operators are registered.
"""

from __future__ import annotations

from typing import Any, TypeVar

import openvino

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.native import Native, load

_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_Self = TypeVar("_Self", bound="_NativeOperator")


class _NativeOperator(openvino.Op):  # type: ignore[misc] # openvino is Any
    """What both operators share; `attributes` are those of the ONNX node, and the threads."""

    def __init__(self, inputs: Any = None, **attributes: int) -> None:
        self._attributes = {"threads": 1} | attributes
        super().__init__(self, inputs)  # which asks for the attributes

    def clone_with_new_inputs(self: _Self, inputs: Any) -> _Self:
        """Return the same operator on other inputs."""
        return type(self)(inputs, **self._attributes)

    def visit_attributes(self, visitor: Any) -> bool:
        """Let OpenVINO store and restore the attributes."""
        visitor.on_attributes(self._attributes)
        return True

    def has_evaluate(self) -> bool:
        """Return whether there is an `evaluate`."""
        return True

    def _shapes(self) -> list[list[int]]:
        return [list(self.get_input_shape(i)) for i in range(self.get_input_size())]


class Correlation4d(_NativeOperator):
    """Correlation4d: query, support and weight of one type -> volume."""

    def __init__(self, inputs: Any = None, **attributes: int) -> None:
        super().__init__(inputs, **({"height": 1, "width": 1, "pool": 1} | attributes))

    def validate_and_infer_types(self) -> None:
        """Give the result its type and shape."""
        query, support, _ = self._shapes()
        height, width, pool = (self._attributes[name] for name in ("height", "width", "pool"))
        windows = -(-height // pool) * -(-width // pool)
        shape = [query[0], support[1], query[1], query[2], windows]
        self.set_output_type(0, self.get_input_element_type(0), openvino.PartialShape(shape))

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Call the library."""
        height, width, pool = (self._attributes[name] for name in ("height", "width", "pool"))
        dtype, operands, shapes = _operands(inputs, outputs)
        threads = self._attributes["threads"]
        _library().correlation4d(dtype, operands, shapes, (height, width, pool), threads)
        return True


class SelectiveScan2d(_NativeOperator):
    """SelectiveScan2d: x and packed of one type, parameters in float32 -> y."""

    def validate_and_infer_types(self) -> None:
        """Give the result its type and shape."""
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Call the library."""
        dtype, operands, shapes = _operands(inputs, outputs)
        _library().selective_scan2d(dtype, operands, shapes, self._attributes["threads"])
        return True


def correlation4d(node: Any, threads: int) -> list[Any]:
    """Convert the ONNX node of a graph with static shapes."""
    grid = {name: node.get_attribute(name) for name in ("height", "width", "pool")}
    inputs = [node.get_input(i) for i in range(3)]
    shots, layers, tokens, channels = list(inputs[1].get_shape())[1:]
    batch = inputs[0].get_shape()[0]
    expected = [[batch, layers, inputs[0].get_shape()[2], channels], [shots, tokens]]
    found = [list(inputs[0].get_shape()), list(inputs[2].get_shape())[1:]]
    firsts = {inputs[1].get_shape()[0], inputs[2].get_shape()[0]}
    _require(found == expected and firsts <= {1, batch}, "Correlation4d")
    _require(min(grid.values()) > 0, "Correlation4d")
    _require(grid["height"] * grid["width"] == tokens, "Correlation4d")
    return [Correlation4d(inputs, **grid, threads=threads).output(0)]


def selective_scan2d(node: Any, threads: int) -> list[Any]:
    """Convert the ONNX node of a graph with static shapes."""
    inputs = [node.get_input(i) for i in range(6)]
    x, packed, weight, bias, decays, skip = (list(each.get_shape()) for each in inputs)
    of_channels = [DIRECTIONS, x[3]]
    fits = packed[:4] == [*x[:3], DIRECTIONS] and packed[4] >= weight[2] + 2 * decays[2]
    alike = all(shape[:2] == of_channels for shape in (weight, bias, decays, skip))
    _require(fits and alike, "SelectiveScan2d")
    return [SelectiveScan2d(inputs, threads=threads).output(0)]


def _require(fits: bool, name: str) -> None:
    """Refuse shapes that do not fit: the library trusts them."""
    if not fits:
        raise ValueError(f"{name}: the inputs' shapes do not fit together")


def _library() -> Native:
    native = load()
    if isinstance(native, str):
        raise TypeError(f"no native operators: {native}")  # pragma: no cover - conversion asked
    return native


def _operands(inputs: list[Any], outputs: list[Any]) -> tuple[str, list[int], list[list[int]]]:
    """Return the type, the addresses of all tensors, and the inputs' shapes."""
    addresses = [tensor.data.ctypes.data for tensor in (*inputs, *outputs)]
    shapes = [list(tensor.shape) for tensor in inputs]
    return _TYPES[inputs[0].element_type.to_string()], addresses, shapes
