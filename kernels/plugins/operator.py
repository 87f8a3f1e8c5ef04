"""The description of an operator from which both kinds of plugin are made.

The kernel's arguments are always the inputs, the int32 scalars and the outputs, in the order given
here; TensorRT's ahead-of-time plugins support no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uino_deploy.errors import BuildError
from uino_deploy.kernels.plugins.expressions import Expression, Numbers, evaluate

Shapes = Mapping[str, Sequence[int]]
Attributes = Mapping[str, int]
Constants = Mapping[str, Any]

POINTER_ALIGNMENT = 16


@dataclass(frozen=True)
class Tensor:
    """An input or output: its rank, and its type if that differs from the operator's."""

    name: str
    rank: int
    dtype: str | None = None


@dataclass(frozen=True)
class Scalar:
    """An int32 argument of the kernel; the compiled code may rely on its being a multiple."""

    name: str
    value: Callable[[Attributes], Expression]
    multiple_of: int = 1


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter: `type` is int32 or the element type of a pointer."""

    name: str
    type: str
    pointer: bool
    # The compiled code relies on pointers and the channel count being multiples of this.
    divisible_by: int


@dataclass(frozen=True)
class Operator:
    """One operator as the ONNX graph, the compiler and TensorRT's plugins see it.

    Attributes:
        name: the name of the ONNX operator and the plugin.
        kernel: its name in kernel files.
        inputs: the inputs, in the order of the ONNX node and of the kernel.
        outputs: the results, in the order of the ONNX node and of the kernel.
        attributes: names of the int attributes, in the order in which a plugin registers them.
        scalars: the kernel's int32 arguments.
        output_shapes: returns each result's dimensions, given the attributes.
        grid: returns a kernel's launch grid, given the attributes and the kernel's constants.
        configurations: returns the kernels that compute the operator, the best one first, given
            the attributes and the inputs' shapes.
        check: raises ValueError for attributes and shapes that do not fit together.
    """

    name: str
    kernel: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[str, ...]
    scalars: tuple[Scalar, ...]
    output_shapes: Callable[[Attributes], tuple[tuple[Expression, ...], ...]]
    grid: Callable[[Attributes, Constants], tuple[Expression, Expression, Expression]]
    configurations: Callable[[Attributes, Shapes], list[str]]
    check: Callable[[Attributes, Shapes], None]

    def parameters(self, dtype: str) -> list[Parameter]:
        """Return the kernel's parameters for an element type, in the order of the launch."""
        integers = [Parameter(s.name, "int32", False, s.multiple_of) for s in self.scalars]
        inputs, outputs = (
            [_pointer(tensor, dtype) for tensor in tensors]
            for tensors in (self.inputs, self.outputs)
        )
        return [*inputs, *integers, *outputs]

    def types(self, dtype: str) -> list[str]:
        """Return the element types of the inputs and the outputs."""
        return [tensor.dtype or dtype for tensor in (*self.inputs, *self.outputs)]

    def numbers(self, attributes: Attributes, shapes: Shapes) -> list[int]:
        """Return the int32 arguments of a launch for concrete shapes.

        Raises:
            BuildError: no kernel computes these shapes.
        """
        try:
            self.check(attributes, shapes)
        except ValueError as error:
            raise BuildError(f"{self.name}: {error}") from error
        values = [evaluate(s.value(attributes), Numbers(shapes)) for s in self.scalars]
        for scalar, value in zip(self.scalars, values, strict=True):
            if value % scalar.multiple_of:
                raise BuildError(
                    f"{self.name}: {scalar.name} is {value}, but the kernels take multiples of "
                    f"{scalar.multiple_of}",
                    "build the engine without plugins",
                )
        return values

    def sizes(self, attributes: Attributes, shapes: Shapes) -> list[tuple[int, ...]]:
        """Return the dimensions of the outputs for concrete shapes of the inputs."""
        numbers = Numbers(shapes)
        return [
            tuple(evaluate(e, numbers) for e in shape) for shape in self.output_shapes(attributes)
        ]

    def blocks(
        self, attributes: Attributes, constants: Constants, shapes: Shapes
    ) -> tuple[int, int, int]:
        """Return the launch grid for concrete shapes."""
        x, y, z = (evaluate(e, Numbers(shapes)) for e in self.grid(attributes, constants))
        return x, y, z


def check_shapes(shapes: Shapes, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes other than those expected.

    Raises:
        ValueError: with the first of them.
    """
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ValueError(f"{name} is {tuple(shapes[name])}, not {shape}")


def _pointer(tensor: Tensor, dtype: str) -> Parameter:
    return Parameter(f"{tensor.name}_ptr", tensor.dtype or dtype, True, POINTER_ALIGNMENT)
