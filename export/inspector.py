"""Reader of TensorRT's engine inspector, in either of its JSON layouts.

10.x lists the names of inputs and outputs under "Bindings" and writes a tensor's format and type as
one text, "Format/Datatype"; 11.x lists objects under "I/O Tensors" and has the type apart
(docs.nvidia.com, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"): "Datatype" in the
library of 11.4, "DataType" on that page. If the plan was built without detailed verbosity, a layer
is just its name. No version says which plugin a layer of type "PluginV3" is, and a plugin in a
region that Myelin compiled is not a separate layer.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import msgspec

from uino_deploy.bundle.plans import EngineLayers
from uino_deploy.errors import BuildError

# Layers in front of and between kernels; they compute nothing.
_MOVES = ("constant", "noop", "reformat", "shapehostto", "shapedeviceto", "signal", "wait")
# Searched in this order, since "BFloat16" contains "Float16". UINT8 is no INT8, and the libraries'
# "FP8UE8M0" is a type of scales.
_SPELLINGS = (
    ("INT8", re.compile(r"(?<!u)int8")),
    ("FP8", re.compile(r"fp8(?!_?ue)")),
    ("BF16", re.compile(r"bf16|bfloat16")),
    ("HALF", re.compile(r"half|fp16|float16")),
    ("FLOAT", re.compile(r"fp32|float")),
)


def read_inspector(text: str) -> EngineLayers:
    """Read `IEngineInspector::getEngineInformation` in JSON.

    Args:
        text: the inspector's answer.

    Returns:
        The engine's layers, counted by the type of their first output.

    Raises:
        BuildError: the layout is unknown.
    """
    try:
        document = msgspec.json.decode(text)
        layers = document["Layers"]
        edges = document.get("I/O Tensors", document.get("Bindings", []))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            f"the engine inspector's answer has no layers: {text[:80]!r}",
            "this TensorRT writes an unknown layout: please report it",
        ) from error
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    types = Counter(
        found for layer in detailed if not _moves(layer) and (found := _output_type(layer))
    )
    return EngineLayers(
        layers=len(layers),
        types=dict(types),
        untyped=len(layers) - len(detailed),
        plugins=[str(layer.get("Name", "")) for layer in detailed if _is_plugin(layer)],
        tensors=[edge["Name"] if isinstance(edge, dict) else str(edge) for edge in edges],
    )


def _moves(layer: dict[str, Any]) -> bool:
    return str(layer.get("LayerType", "")).lower().startswith(_MOVES)


def _is_plugin(layer: dict[str, Any]) -> bool:
    """Return whether a layer is a plugin: "PluginV2" or "PluginV3" in the libraries."""
    return "plugin" in str(layer.get("LayerType", "")).lower()


def _output_type(layer: dict[str, Any]) -> str:
    """Return the type of the first output; empty for others than `type_name`'s."""
    return tensor_type((layer.get("Outputs") or [{}])[0])


def tensor_type(tensor: Any) -> str:
    """Return the type of an inspected tensor by `type_name`; empty if none is given."""
    told = tensor if isinstance(tensor, dict) else {}
    keys = ("DataType", "Format/Datatype", "Datatype", "Format")
    return type_name(next((str(told[key]) for key in keys if told.get(key)), ""))


def type_name(spelled: str) -> str:
    """Return INT8, FP8, BF16, HALF or FLOAT by a library's spelling; empty for others."""
    lower = spelled.lower()
    return next((name for name, spelling in _SPELLINGS if spelling.search(lower)), "")
