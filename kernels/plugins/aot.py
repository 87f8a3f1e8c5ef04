"""The operators as quick-deployable plugins for TensorRT 10.9 and newer: PTX into the engine.

The functions that TensorRT calls are made from the operator's description. TensorRT reads their
signatures, so each operator gets its own.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any, TypeVar

import tensorrt.plugin as trtp

from uino_deploy.errors import BuildError
from uino_deploy.kernels.plugins.dtypes import TYPES
from uino_deploy.kernels.plugins.expressions import Expression, evaluate
from uino_deploy.kernels.plugins.library import OPERATORS, Library
from uino_deploy.kernels.plugins.names import NAMESPACE
from uino_deploy.kernels.plugins.operator import Operator

_SPELLED = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
# Launch parameters are symbols for one kernel, so there is one tactic.
_TACTIC = 1

Implementation = tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymExprs]
Function = TypeVar("Function", bound=Callable[..., Any])


class Symbols:
    """An evaluator of expressions as the shape expressions of quick-deployable plugins."""

    def __init__(self, descs: dict[str, trtp.TensorDesc]) -> None:
        self._descs = descs

    def value(self, expression: Expression) -> trtp.ShapeExpr | int:
        """Return an expression in the form that TensorRT takes."""
        # Named before it is returned: otherwise mypy infers the union for T.
        result = evaluate(expression, self)
        return result

    def dimension(self, tensor: str, axis: int) -> trtp.ShapeExpr:
        """Return an input's size along an axis."""
        return self._descs[tensor].shape_expr[axis]

    def product(self, left: trtp.ShapeExpr, right: trtp.ShapeExpr | int) -> trtp.ShapeExpr:
        """Return left * right."""
        return left * right

    def ceil_div(self, left: trtp.ShapeExpr, right: int) -> trtp.ShapeExpr:
        """Return left / right, rounded up."""
        return trtp.cdiv(left, right)


class Plugin:
    """The callbacks of one operator while TensorRT builds an engine."""

    def __init__(self, operator: Operator, library: Library) -> None:
        self.operator, self.library = operator, library

    def describe(self, *descs: trtp.TensorDesc, **attributes: int) -> tuple[trtp.TensorDesc, ...]:
        """Return the outputs' type, and their shapes as expressions over the inputs' shapes."""
        symbols = Symbols(self._named(descs))
        shapes = [
            tuple(symbols.value(e) for e in shape)
            for shape in self.operator.output_shapes(attributes)
        ]
        return tuple(trtp.from_shape_expr(shape, dtype=descs[0].dtype) for shape in shapes)

    def combinations(self, *arguments: Any) -> list[trtp.AutoTuneCombination]:
        """Return the one combination of types, the network's, with all tensors linear."""
        dtype = self._dtype(arguments[0])
        types = ", ".join(_SPELLED[name] for name in self.operator.types(dtype))
        return [trtp.AutoTuneCombination(types, "LINEAR", [_TACTIC])]

    def implement(self, *arguments: Any) -> Implementation:
        """Return the kernel's name and PTX, its grid as expressions, and its int32 arguments."""
        count = len(self.operator.inputs)
        descs = self._named(arguments[:count])
        names = self.operator.attributes
        attributes = dict(zip(names, map(int, arguments[count : count + len(names)]), strict=True))
        # Check, and choose the kernel, for the shapes that the engine is optimised for.
        shapes = {name: _sizes(desc) for name, desc in descs.items()}
        kernel = self.library.launch(
            self.operator, attributes, shapes, self._dtype(arguments[0])
        ).kernel
        if not kernel.record.plugin:
            raise BuildError(
                f"{kernel.record.name} needs {kernel.record.shared_bytes} bytes of shared memory",
                "build the engine without plugins",
            )
        symbols = Symbols(descs)
        expressions = self.operator.grid(attributes, kernel.record.constants)
        x, y, z = [symbols.value(e) for e in expressions]
        launch = trtp.KernelLaunchParams(
            x, y, z, block_x=kernel.record.block[0], shared_mem=kernel.record.shared_bytes
        )
        numbers = [symbols.value(s.value(attributes)) for s in self.operator.scalars]
        scalars = trtp.SymExprs(len(numbers))
        for index, number in enumerate(numbers):
            scalars[index] = trtp.SymInt32(number)
        return kernel.record.entry, kernel.ptx().encode(), launch, scalars

    def _named(self, descs: tuple[trtp.TensorDesc, ...]) -> dict[str, trtp.TensorDesc]:
        names = [tensor.name for tensor in self.operator.inputs]
        return dict(zip(names, descs, strict=True))

    def _dtype(self, desc: trtp.TensorDesc) -> str:
        if desc.dtype not in TYPES:
            raise BuildError(f"{self.operator.name}: no kernel computes in {desc.dtype}")
        return TYPES[desc.dtype]


def _sizes(desc: trtp.TensorDesc) -> tuple[int, ...]:
    """Return the sizes that the engine is optimised for."""
    return tuple(desc.shape.opt if desc.is_dynamic else desc.shape)


def _signed(function: Function, parameters: dict[str, Any], result: Any) -> Any:
    """Return a function whose signature has these annotated parameters."""

    def signed(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    kind = Parameter.POSITIONAL_OR_KEYWORD
    signed.__signature__ = Signature(  # type: ignore[attr-defined]  # not in the stubs of functions
        [Parameter(name, kind, annotation=a) for name, a in parameters.items()],
        return_annotation=result,
    )
    return signed


def _define(plugin: Plugin) -> None:
    operator = plugin.operator
    identity = f"{NAMESPACE}::{operator.name}"
    tensors: dict[str, Any] = {tensor.name: trtp.TensorDesc for tensor in operator.inputs}
    attributes = dict.fromkeys(operator.attributes, int)
    outputs = {"outputs": tuple[trtp.TensorDesc]}
    # TensorRT counts the outputs in this annotation.
    described = GenericAlias(tuple, (trtp.TensorDesc,) * len(operator.outputs))
    trtp.register(identity)(_signed(plugin.describe, tensors | attributes, described))
    trtp.autotune(identity)(
        _signed(plugin.combinations, tensors | outputs, list[trtp.AutoTuneCombination])
    )
    trtp.aot_impl(identity)(
        _signed(plugin.implement, tensors | attributes | outputs | {"tactic": int}, Implementation)
    )


_plugins: dict[str, Plugin] = {}


def register(library: Library) -> None:
    """Define a plugin for each operator; later calls only pass on the new library."""
    for name, operator in OPERATORS.items():
        if name in _plugins:
            _plugins[name].library = library
        else:
            plugin = Plugin(operator, library)
            _define(plugin)
            _plugins[name] = plugin
