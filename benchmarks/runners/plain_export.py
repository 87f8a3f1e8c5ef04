"""One plain `torch.onnx.export` of the whole model, as a user without this product would do it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from uino_deploy.benchmarks.runners import plain_torch
from uino_deploy.model.checkpoint import load_checkpoint
from uino_deploy.model.hypercorrelation import use_operators
from uino_deploy.model.prompt_generator import SupportFeatures
from uino_deploy.model.segmenter import UinoFSS


class _Query(nn.Module):
    def __init__(self, model: UinoFSS) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, *support: Tensor) -> Tensor:
        logits, _ = self.model.segment(image, SupportFeatures(*support))
        return logits


class _Enroll(nn.Module):
    def __init__(self, model: UinoFSS) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        features = self.model.enroll(image, mask)
        return tuple(feature for feature in features if feature is not None)


def export_whole(checkpoint: Path, query: Path, enroll: Path, image_size: int) -> None:
    """Write the graph of a query and the graph that enrolls a class, for one query and one shot.

    Shapes are static, which is fastest in every runtime. The scan is the two-level one: the literal
    loop would be unrolled into some hundred thousand nodes.

    Args:
        checkpoint: a uino-deploy checkpoint.
        query: receives the graph of a query; its folder is created.
        enroll: receives the graph that enrolls a class.
        image_size: side of the square image in pixels.
    """
    model = load_checkpoint(checkpoint).eval()
    use_operators(model, plain_torch.operators(plain_torch.scan_by_rows))
    tokens = (image_size // model.config.encoder.patch) ** 2
    shot = torch.zeros(1, 1, 3, image_size, image_size), torch.full((1, 1, tokens), 0.5)
    with torch.inference_mode():
        features = model.enroll(*shot)
    known = {
        name: feature.clone()
        for name, feature in zip(features._fields, features, strict=True)
        if feature is not None
    }
    query.parent.mkdir(parents=True, exist_ok=True)
    _write(_Enroll(model), shot, enroll, ["images", "masks"], list(known))
    inputs = (shot[0][0], *known.values())
    _write(_Query(model), inputs, query, ["image", *known], ["logits"])


def _write(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
) -> None:
    torch.onnx.export(
        module.eval(),
        arguments,
        path,
        input_names=inputs,
        output_names=outputs,
        dynamo=True,
        external_data=True,
        verbose=False,
    )
