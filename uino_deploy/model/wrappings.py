"""What training programs put around a model's tensors, taken off again and named.

Sources: DataParallel's and torch.compile's prefixes; the files that DINOv2's, DINO's and
Lightning's trainings write; DINOv2's `block_chunks`, which numbers a block `blocks.CHUNK.BLOCK`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from uino_deploy.model.layouts import recognise

# Dictionaries around the tensors; a teacher is the average that such trainings publish.
_KEYS = ("teacher", "ema", "state_dict", "model_state_dict", "model", "module", "backbone")
# Prefixes of all tensors, and prefixes beside which a file holds other parts of a training.
_OF_ALL = ("module.", "_orig_mod.", "model.", "net.")
_OF_SOME = ("teacher.", "backbone.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+\.)")
_BLOCK = re.compile(r"^blocks\.")


class Unwrapped(NamedTuple):
    """The tensors of a file, and how they were wrapped.

    Attributes:
        values: tensors by name; values that are none where the file holds more than tensors.
        wrapping: such as "under 'teacher', without 'backbone.'"; empty where nothing was.
    """

    values: dict[str, Any]
    wrapping: str


def unwrap(loaded: Mapping[str, Any]) -> Unwrapped:
    """Take off what is known to be put around a model's tensors.

    Args:
        loaded: what a file holds; tensors are whatever has a shape.
    """
    steps: list[str] = []
    values = dict(loaded)
    while (key := _inner(values)) is not None:
        steps.append(f"under {key!r}")
        values = dict(values[key])
    while (prefix := _prefix(values)) is not None:
        steps.append(f"without {prefix!r}")
        values = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
    if _chunked(values):
        steps.append("without block chunks")
        values = {_CHUNKED.sub(r"blocks.\1", name): value for name, value in values.items()}
    return Unwrapped(values, ", ".join(steps))


def _inner(values: Mapping[str, Any]) -> str | None:
    """Return the key of the dictionary that holds the tensors, if they do not lie here."""
    if any(hasattr(value, "shape") for value in values.values()):
        return None
    for key in _KEYS:
        inside = values.get(key)
        if isinstance(inside, Mapping) and all(isinstance(name, str) for name in inside):
            return key
    return None


def _prefix(values: Mapping[str, Any]) -> str | None:
    """Return the prefix to take off, while the names are those of no known layout."""
    names = [name for name in values if isinstance(name, str)]
    if not names or len(names) < len(values):
        return None
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in values.items()}
    if recognise(shapes) is not None:
        return None
    for prefix in _OF_ALL:
        if all(name.startswith(prefix) for name in names):
            return prefix
    for prefix in _OF_SOME:
        if any(name.startswith(prefix) for name in names):
            return prefix
    return None


def _chunked(values: Mapping[str, Any]) -> bool:
    """Return whether every block is numbered inside a chunk, and each once."""
    blocks = [name for name in values if isinstance(name, str) and _BLOCK.match(name)]
    plain = {_CHUNKED.sub(r"blocks.\1", name) for name in blocks}
    return bool(blocks) and all(map(_CHUNKED.match, blocks)) and len(plain) == len(blocks)
