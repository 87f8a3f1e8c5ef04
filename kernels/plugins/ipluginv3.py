"""The operators as Python plugins for TensorRT 10.3 and newer: they launch the compiled cubin.

They are safe under CUDA graph capture: cubins are loaded when shapes are set, and `enqueue` only
puts one launch on the stream. They have no workspace and no tactics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorrt as trt

from uino_deploy.errors import BuildError
from uino_deploy.kernels.plugins import driver
from uino_deploy.kernels.plugins.dtypes import TYPES
from uino_deploy.kernels.plugins.expressions import evaluate
from uino_deploy.kernels.plugins.library import OPERATORS, Launch, Library
from uino_deploy.kernels.plugins.names import NAMESPACE, VERSION
from uino_deploy.kernels.plugins.operator import Operator


class Symbols:
    """An evaluator of expressions as the dimension expressions of TensorRT's builder."""

    def __init__(
        self, operator: Operator, inputs: Sequence[trt.DimsExprs], builder: trt.IExprBuilder
    ) -> None:
        names = [tensor.name for tensor in operator.inputs]
        self._inputs, self._builder = dict(zip(names, inputs, strict=True)), builder

    def constant(self, value: trt.IDimensionExpr | int) -> trt.IDimensionExpr:
        """Return a number as an expression, and an expression as it is."""
        return self._builder.constant(value) if isinstance(value, int) else value

    def dimension(self, tensor: str, axis: int) -> trt.IDimensionExpr:
        """Return an input's size along an axis."""
        return self._inputs[tensor][axis]

    def product(
        self, left: trt.IDimensionExpr, right: trt.IDimensionExpr | int
    ) -> trt.IDimensionExpr:
        """Return left * right."""
        kind = trt.DimensionOperation.PROD
        return self._builder.operation(kind, left, self.constant(right))

    def ceil_div(self, left: trt.IDimensionExpr, right: int) -> trt.IDimensionExpr:
        """Return left / right, rounded up."""
        kind = trt.DimensionOperation.CEIL_DIV
        return self._builder.operation(kind, left, self.constant(right))


# The bindings of 10.3 corrupt memory when Python frees a plugin, so these few are never freed.
_alive: list[trt.IPluginV3] = []


class KernelPlugin(
    trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
):
    """One node: an operator with its attributes, computed by the kernels of a library."""

    def __init__(self, operator: Operator, attributes: dict[str, int], library: Library) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        _alive.append(self)
        self.plugin_name = operator.name
        self.plugin_version = VERSION
        self.plugin_namespace = NAMESPACE
        self.num_outputs = len(operator.outputs)
        self.operator, self.attributes, self.library = operator, attributes, library
        self.launch: Launch | None = None
        self.function: object = None
        # TensorRT reads the fields after `get_fields_to_serialize` has returned. One element each:
        # with NumPy 2, longer arrays come back wrong from TensorRT up to 10.13.
        self.fields = {name: np.array([v], np.int32) for name, v in attributes.items()}

    def get_capability_interface(self, type: trt.PluginCapabilityType) -> KernelPlugin:
        """Return the object that implements a capability: this one implements all three."""
        return self

    def get_output_data_types(self, input_types: Sequence[trt.DataType]) -> list[trt.DataType]:
        """Return the first input's type for each output."""
        return [input_types[0]] * self.num_outputs

    def get_output_shapes(
        self,
        inputs: Sequence[trt.DimsExprs],
        shape_inputs: Sequence[trt.DimsExprs],
        exprBuilder: trt.IExprBuilder,
    ) -> list[trt.DimsExprs]:
        """Return the outputs' shapes as expressions over the inputs'."""
        symbols = Symbols(self.operator, inputs, exprBuilder)
        found = []
        for shape in self.operator.output_shapes(self.attributes):
            dims = trt.DimsExprs(len(shape))
            for axis, expression in enumerate(shape):
                size = evaluate(expression, symbols)
                dims[axis] = symbols.constant(size)
            found.append(dims)
        return found

    def supports_format_combination(
        self, pos: int, in_out: Sequence[trt.DynamicPluginTensorDesc], num_inputs: int
    ) -> bool:
        """Accept linear tensors of the operator's types; all but its parameters share one."""
        desc, own = in_out[pos].desc, in_out[0].desc.type
        if desc.format != trt.TensorFormat.LINEAR or own not in TYPES:
            return False
        return TYPES.get(desc.type) == self.operator.types(TYPES[own])[pos]

    def configure_plugin(
        self, in_: Sequence[trt.DynamicPluginTensorDesc], out: Sequence[trt.DynamicPluginTensorDesc]
    ) -> None:
        """Do nothing: the kernel is chosen once the shapes are known."""

    def on_shape_change(
        self, in_: Sequence[trt.PluginTensorDesc], out: Sequence[trt.PluginTensorDesc]
    ) -> None:
        """Choose the kernel for these shapes and load it."""
        named = zip(self.operator.inputs, in_, strict=True)
        shapes = {tensor.name: tuple(desc.dims) for tensor, desc in named}
        dtype = TYPES[in_[0].type]
        self.launch = self.library.launch(self.operator, self.attributes, shapes, dtype)
        self.function = driver.load(self.launch.kernel)

    def attach_to_context(self, context: trt.IPluginResourceContext) -> KernelPlugin:
        """Return the plugin that an execution context runs."""
        return self.clone()

    def get_fields_to_serialize(self) -> trt.PluginFieldCollection:
        """Return the attributes, which the engine stores."""
        kind = trt.PluginFieldType.INT32
        fields = [trt.PluginField(name, value, kind) for name, value in self.fields.items()]
        return trt.PluginFieldCollection(fields)

    def enqueue(
        self,
        input_desc: Sequence[trt.PluginTensorDesc],
        output_desc: Sequence[trt.PluginTensorDesc],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Put the launch on the stream."""
        if self.launch is None:
            raise BuildError(f"{self.operator.name}: enqueued before its shapes were set")
        driver.run(self.function, self.launch, inputs, outputs, stream)

    def clone(self) -> KernelPlugin:
        """Return a plugin in the same state."""
        copy = KernelPlugin(self.operator, self.attributes, self.library)
        copy.__dict__.update(self.__dict__)
        return copy


class Creator(trt.IPluginCreatorV3One):
    """A factory of one operator's plugins, for ONNX nodes and for engines."""

    def __init__(self, operator: Operator, library: Library) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name = operator.name
        self.plugin_version = VERSION
        self.plugin_namespace = NAMESPACE
        kind = trt.PluginFieldType.INT32
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField(name, np.array([]), kind) for name in operator.attributes]
        )
        self.operator, self.library = operator, library

    def create_plugin(
        self,
        name: str,
        fc: trt.PluginFieldCollection_,
        phase: trt.TensorRTPhase,
    ) -> KernelPlugin:
        """Return a plugin with the attributes of a node.

        Raises:
            BuildError: an attribute is missing.
        """
        given = {field.name: int(field.data.flat[0]) for field in fc}
        missing = [key for key in self.operator.attributes if key not in given]
        if missing:
            raise BuildError(f"{self.operator.name} {name}: no attribute {', '.join(missing)}")
        attributes = {key: given[key] for key in self.operator.attributes}
        return KernelPlugin(self.operator, attributes, self.library)


# The registry does not own its creators.
_creators: dict[str, Creator] = {}


def register(library: Library) -> None:
    """Register a creator for each operator; later calls only pass on the new library.

    Raises:
        BuildError: TensorRT's registry refuses.
    """
    for name, operator in OPERATORS.items():
        if name in _creators:
            _creators[name].library = library
            continue
        creator = Creator(operator, library)
        if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise BuildError(f"TensorRT's plugin registry refuses {NAMESPACE}::{name}")
        _creators[name] = creator
