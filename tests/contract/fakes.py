"""Substitutes for what the stub library lacks: a plugin registry, TensorRT's shape symbols.

Methods and enums are those of IPluginRegistry, IExprBuilder and IDimensionExpr in NvInferRuntime.h
and in the bindings' plugin package, which calls them; descriptions are the bindings' own classes.
"""

import tensorrt as trt


class Registry:
    """A plugin registry that keeps creators as TensorRT's does: by name, version and namespace."""

    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        key = creator.name, creator.plugin_version, namespace
        if key in self.creators:
            return False
        self.creators[key] = creator
        return True

    def get_creator(self, name, version, namespace):
        return self.creators.get((name, version, namespace))


class Symbol:
    """A dimension: what it is worth, and how it came about."""

    def __init__(self, value, text):
        self.value, self.text = value, text

    def is_constant(self):
        return self.text.isdigit()

    def get_constant_value(self):
        assert self.is_constant()
        return self.value


class Builder:
    """Makes symbols as TensorRT's IExprBuilder does."""

    def constant(self, value):
        return Symbol(value, str(value))

    def operation(self, kind, left, right):
        assert isinstance(left, Symbol)
        assert isinstance(right, Symbol)
        if kind == trt.DimensionOperation.PROD:
            return Symbol(left.value * right.value, f"({left.text} * {right.text})")
        if kind == trt.DimensionOperation.SUM:
            return Symbol(left.value + right.value, f"({left.text} + {right.text})")
        assert kind == trt.DimensionOperation.CEIL_DIV
        return Symbol(-(-left.value // right.value), f"ceil({left.text} / {right.text})")


class Dims(list):
    """Stands for DimsExprs, which takes only TensorRT's own symbols."""

    def __init__(self, length):
        super().__init__([None] * length)


def symbolic(shapes):
    """Return each input's dimensions as symbols."""
    return [
        [Symbol(size, f"{name}[{axis}]") for axis, size in enumerate(shape)]
        for name, shape in shapes.items()
    ]


def described(shape, dtype, least=None):
    """Return a tensor's description; dynamic where its least shape differs."""
    desc = trt.DynamicPluginTensorDesc()
    desc.desc = fixed(shape, dtype)
    desc.min = desc.max = desc.opt = trt.Dims(shape)
    if least is not None:
        pairs = zip(shape, least, strict=True)
        desc.desc = fixed(tuple(s if s == low else -1 for s, low in pairs), dtype)
        desc.min = trt.Dims(least)
    return desc


def fixed(shape, dtype):
    """Return a tensor's description for one shape."""
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    return desc
