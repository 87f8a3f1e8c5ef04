"""The tensors that pass between the pieces for one example, as PyTorch computes them.

A bundle stores one such set so that a device without torch can check itself. Each tensor of the
model's variant is stored once, in float32, under its name on the routes of `pipeline`:

    support_image [K,3,H,H]  mask [K,N]  support_deep [1,K,L,N,D]  weight [1,K,N]
    prototypes [2,D]  sparse [1,2,E]  image [B,3,H,H]  early [B,N,D]  query_deep [B,L,N,D]
    embedding [B,E,h,w]  dense [B,E,h,w]  logits [B,1,4h,4w]  iou [B,1]

Beside them lie samples of what each of our operators takes first and gives inside the prompt's
piece, in the order of their calls: operator.0.input [<= 4096], operator.0.output, operator.1.input,
operator.1.output, operator.1.second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from uino_deploy.bundle.manifest import Bundle, Piece
from uino_deploy.errors import BundleError
from uino_deploy.pipeline import CLASS, CLASS_AXIS, route_of

Array = npt.NDArray[Any]
AnyTensor = TypeVar("AnyTensor")
OUTPUTS = ("output", "second")
"""How samples of an operator's first result and its second one are called."""
_SAMPLES = 4096
Example = Mapping[str, Array]


def load_example(bundle: Bundle) -> dict[str, Array]:
    """Read the example stored in a bundle.

    Raises:
        BundleError: the file is not a safetensors file.
    """
    path: Path = bundle.path(bundle.manifest.reference)
    try:
        return load(bundle.read(bundle.manifest.reference))
    except SafetensorError as error:
        raise BundleError(f"{path} cannot be read: {error}", "export the bundle again") from error


def operator_name(call: int, what: str) -> str:
    """Return the name of a sample: what ("input", or one of `OUTPUTS`) of an operator's call."""
    return f"operator.{call}.{what}"


def operator_sample(values: AnyTensor) -> AnyTensor:
    """Return up to 4096 elements of an array or a tensor, evenly spread, in one dimension."""
    flat: Any = values.reshape(-1)  # type: ignore[attr-defined]  # numpy's and torch's alike
    return flat[:: max(1, -(-flat.shape[0] // _SAMPLES))]  # type: ignore[no-any-return]


def inputs_of(piece: Piece, example: Example) -> dict[str, Array]:
    """Return the inputs of a piece for an example, by the piece's names."""
    return {edge.name: _tensor(piece.name, edge.name, example) for edge in piece.inputs}


def outputs_of(piece: Piece, example: Example) -> dict[str, Array]:
    """Return the outputs expected of a piece for `inputs_of`, by the piece's names."""
    return {edge.name: _tensor(piece.name, edge.name, example) for edge in piece.outputs}


def tensor_of(example: Example, name: str) -> Array:
    """Return a tensor or a sample of an example.

    Raises:
        BundleError: it has none of this name.
    """
    if name not in example:
        raise BundleError(f"the reference has no tensor {name!r}", "export the bundle again")
    return example[name]


def _tensor(piece: str, edge: str, example: Example) -> Array:
    route = route_of(piece)
    name = route.name(edge)
    # An example has the shapes of a query; the pieces of a class have no axis for it.
    whole = tensor_of(example, name)
    return whole[0] if route is CLASS and name in CLASS_AXIS else whole
