"""Which names of TensorRT and cuda-python our sources use, read from their syntax trees.

The libraries are `Any` to us where they are imported at run time, so no type checker sees a
misspelt name. A chain that starts at a module (`trt.LayerType.CAST`) is followed from there; for a
method of an object the variable's name says of which class it is, by the table below.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# File -> the oldest TensorRT for which it is imported.
FILES = {
    "export/engine_job.py": (10, 3),
    "kernels/plugins/__init__.py": (10, 3),
    "kernels/plugins/aot.py": (10, 9),
    "kernels/plugins/driver.py": (10, 3),
    "kernels/plugins/dtypes.py": (10, 3),
    "kernels/plugins/ipluginv3.py": (10, 3),
    "uino_deploy/runtime/cuda_memory.py": (10, 3),
    "uino_deploy/runtime/tensorrt_backend.py": (10, 3),
}
TENSORRT, PLUGIN = "tensorrt", "tensorrt.plugin"
RUNTIME, DRIVER = "cuda.bindings.runtime", "cuda.bindings.driver"
MODULES = {"trt": TENSORRT, "trtp": PLUGIN, "cudart": RUNTIME}
# The same variable for two things, told apart by the file.
OWN_MODULES = {
    "kernels/plugins/driver.py": {"driver": DRIVER},
    "export/engine_job.py": {"cuda": RUNTIME},
}
CLASSES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "creator": "IPluginCreatorV3One",
    "engine": "ICudaEngine",
    "exprBuilder": "IExprBuilder",
    "field": "PluginField",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
}
OWN_CLASSES = {
    "export/engine_job.py": {"e": "ParserError", "tensor": "ITensor"},
    "kernels/plugins/ipluginv3.py": {"builder": "IExprBuilder"},
}
# Ours in this file, not TensorRT's.
NOT_CLASSES = {"kernels/plugins/ipluginv3.py": {"creator"}}
RETURNS = {
    "get_input": "ITensor",
    "get_layer": "ILayer",
    "get_output": "ITensor",
    "get_plugin_registry": "IPluginRegistry",
    "get_timing_cache": "ITimingCache",
}
# Used only where the backend is TensorRT-RTX; a test of its own looks them up there.
RTX_ONLY = {
    "ComputeCapability",
    "EngineValidity",
    "get_engine_validity",
    "num_compute_capabilities",
    "set_compute_capability",
}


@dataclass(frozen=True)
class Use:
    """A chain of names from a module on, and where it is used."""

    module: str
    chain: tuple[str, ...]
    where: str

    def missing(self, module):
        """Return the first name that the module, or what it leads to, does not have."""
        value = module
        for name in self.chain:
            if not hasattr(value, name):
                return name
            value = getattr(value, name)
        return None


def uses(path):
    """Return what a file uses, each chain once, with the line of its first use."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    modules = MODULES | OWN_MODULES.get(path, {})
    classes = CLASSES | OWN_CLASSES.get(path, {})
    for name in NOT_CLASSES.get(path, ()):
        del classes[name]
    guarded = _guarded(tree)
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            for module, chain in _chains(node, modules, classes):
                if not guarded & set(chain):
                    found.setdefault((module, chain), node.lineno)
    return [Use(*key, f"{path}:{line}") for key, line in sorted(found.items())]


def overrides(path):
    """Return (base classes, method, where) of the methods that TensorRT calls."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [_names(base)[-1] for base in node.bases if _names(base)[:1] == ["trt"]]
            for method in node.body if bases else []:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield bases, method.name, f"{path}:{method.lineno}"


def _guarded(tree):
    """Return the names that the file itself asks for with hasattr."""
    return {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "hasattr"
        and isinstance(node.args[1], ast.Constant)
    }


def _names(node):
    """Return a chain of names, from the left; empty where it does not start with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        left = _names(node.value)
        return [*left, node.attr] if left else []
    return []


def _chains(node, modules, classes):
    names = _names(node)
    if not names:
        called = node.value
        if isinstance(called, ast.Call) and isinstance(called.func, ast.Attribute):
            kind = RETURNS.get(called.func.attr)
            if kind:
                yield TENSORRT, (kind, node.attr)
        return
    # `self._trt.Runtime` starts at `_trt`.
    plain = [name.strip("_") for name in names]
    start = 1 if names[0] == "self" else 0
    if len(names) > start + 1:
        head = plain[start]
        if head in modules:
            yield modules[head], tuple(names[start + 1 :])
        elif head in classes:
            yield TENSORRT, (classes[head], names[start + 1])
