"""Examples to compare on: images run through the PyTorch model, with all tensors between pieces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uino_deploy.bundle.reference import OUTPUTS, operator_name, operator_sample
from uino_deploy.config import UinoConfig
from uino_deploy.export.pieces import PieceModule, reference_pieces, run_modules
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.model.hypercorrelation import Operators, use_operators
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.pipeline import CLASS, QUERY, with_class_axis

Image = npt.NDArray[np.uint8]


def example_of(
    model: UinoFSS, query: Image, shots: Sequence[tuple[Image, Image]]
) -> dict[str, Tensor]:
    """Run the model on a query and its support, keeping every tensor that passes between pieces.

    Args:
        model: float32, in evaluation mode.
        query: uint8 [H, W, 3].
        shots: images uint8 [H, W, 3] with masks uint8 [H, W], 0 or 1.

    Returns:
        float32 tensors under the names of `uino_deploy.bundle.reference`.
    """
    config, pieces = model.config, reference_pieces(model)
    operators: dict[str, Tensor] = {}
    pieces["prompt"] = _recorded(pieces["prompt"], operators)
    support = {
        "support_image": torch.stack([_image(image, config) for image, _ in shots]),
        "mask": torch.stack([_mask(mask, config) for _, mask in shots]),
    }
    with torch.inference_mode():
        enrolled = run_modules(CLASS, [pieces[name] for name in CLASS.pieces], support)
        del enrolled["early"]  # a query takes only its own image's
        known = {**with_class_axis(enrolled), "image": _image(query, config)[None]}
        tensors = run_modules(QUERY, [pieces[name] for name in QUERY.pieces], known)
    # Cloned: without contrastive enhancement the weight is the mask, and a file stores each once.
    made = {**tensors, **operators}
    return {name: tensor.clone().contiguous() for name, tensor in made.items()}


def logits_from(model: UinoFSS, piece: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Compute in PyTorch the rest of a query after a piece, from an exported piece's outputs.

    Args:
        model: the reference.
        piece: the piece whose outputs are given.
        tensors: those outputs, and an example's other tensors; dependent ones are computed
            again.

    Returns:
        logits, float32 [B, 1, 4h, 4w].
    """
    pieces = reference_pieces(model)
    after = QUERY.after(piece)
    with torch.inference_mode():
        return run_modules(QUERY, [pieces[name] for name in after], tensors)["logits"]


def _image(image: Image, config: UinoConfig) -> Tensor:
    return torch.from_numpy(preprocess_image(image, config.image_size))


def _mask(mask: Image, config: UinoConfig) -> Tensor:
    return torch.from_numpy(preprocess_mask(mask, config.image_size, config.encoder.patch))


def _recorded(made: PieceModule, seen: dict[str, Tensor]) -> PieceModule:
    """Return a copy of the prompt's piece that records its operators.

    Args:
        made: the piece in the model.
        seen: receives samples of what each call takes first and gives, by `operator_name`.
    """
    module = copy.deepcopy(made.module)
    calls = iter(range(1 << 16))

    def recording(operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(first: Tensor, *rest: Any) -> Any:
            results = operator(first, *rest)
            given = results if isinstance(results, tuple) else (results,)
            named = {"input": first, **dict(zip(OUTPUTS, given, strict=False))}
            call = next(calls)
            for what, tensor in named.items():
                seen[operator_name(call, what)] = operator_sample(tensor)
            return results

        return run

    use_operators(module, Operators(*map(recording, Operators())))
    return PieceModule(made.piece, module)
