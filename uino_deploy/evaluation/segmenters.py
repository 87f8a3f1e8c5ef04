"""Segmenters: the common form in which models are evaluated and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uino_deploy.bundle.presence import resemblance
from uino_deploy.bundle.signature import note_unchecked
from uino_deploy.images import Float32, UInt8, preprocess_image, preprocess_mask, upsample_logits
from uino_deploy.runtime import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from uino_deploy.model.segmenter import UinoFSS

Shots = Sequence[tuple[UInt8, UInt8]]
"""Support images, uint8 RGB [H, W, 3], with their masks, uint8 [H, W] of 0 and 1."""

Segment = Callable[[Shots, UInt8], UInt8]
"""A method: from the shots of a class and a query image to the query's mask [H, W], 0 and 1."""

Load = Callable[[Path], Predictor]
"""Opens the bundle in a folder on a backend."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a model's encoder says of an episode: the last layer's patch tokens.

    Attributes:
        support: float32 [K, N, D].
        shares: float32 [K, N], how much of each support patch is foreground.
        query: float32 [N, D].
    """

    support: Float32
    shares: Float32
    query: Float32


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of a query.

    Attributes:
        mask: uint8 [H, W] of 0 and 1.
        logits: float32 [4h, 4w], before upsampling to the query's size.
        iou: the predicted IoU.
        tokens: what the encoder says.
    """

    mask: UInt8
    logits: Float32
    iou: float
    tokens: Tokens

    @property
    def resemblance(self) -> float:
        """How much more the marked area resembles the class than its background."""
        shares, support = self.tokens.shares.ravel(), self.tokens.support
        known = support.reshape(len(shares), -1)
        prototypes = np.stack([each @ known / each.sum() for each in (shares, 1 - shares)])
        return resemblance(self.logits, self.tokens.query, prototypes)


@dataclass(frozen=True)
class Segmenter:
    """A model as a method.

    Attributes:
        answer: from shots and a query image to all that the model says of the query.
    """

    answer: Callable[[Shots, UInt8], Answer]

    def __call__(self, shots: Shots, query: UInt8) -> UInt8:
        """Return the query's mask alone."""
        return self.answer(shots, query).mask


def bundle_segmenter(predictor: Predictor) -> Segmenter:
    """Return a bundle as a segmenter; it enrolls the class again for each query."""
    config = predictor.bundle.config

    def answer(shots: Shots, query: UInt8) -> Answer:
        support = predictor.enroll(list(shots), "episode", calibrated=False)
        encoded = predictor.encode(query)
        if support.deep is None:  # a variant whose queries need only the class's prototypes
            known = np.stack([predictor.encode(image).tokens for image, _ in shots])
        else:
            known = _last_layer(support.deep)
        shares = [
            preprocess_mask(mask, config.image_size, config.encoder.patch) for _, mask in shots
        ]
        tokens = Tokens(known, np.stack(shares), encoded.tokens)
        result = predictor.predict(encoded, support)
        return Answer(result.mask, result.logits, result.score, tokens)

    return Segmenter(answer)


def model_segmenter(model: UinoFSS) -> Segmenter:
    """Return a PyTorch model as a segmenter; the mask is where its logits exceed 0.

    Args:
        model: in evaluation mode, on any device.
    """
    return Segmenter(lambda shots, query: _forward(model, shots, query))


def _last_layer(deep: NDArray[Any]) -> Float32:
    """Return the last of the layers in [B, L, N, D] as float32 [B, N, D]."""
    return np.asarray(deep[:, -1], np.float32)


def open_segmenter(path: Path, load: Load = Predictor.load) -> Segmenter:
    """Return a bundle (a folder) or a checkpoint (a file) as a segmenter.

    Args:
        path: the bundle or the checkpoint.
        load: opens a bundle. A checkpoint runs in PyTorch, on CUDA if there is a device.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be read.
        DependencyError: a package that it needs is not installed.
    """
    if path.is_dir():
        return bundle_segmenter(load(path))
    note_unchecked(path, "a checkpoint")
    from uino_deploy.dependencies import require

    require("export", "torch")
    import torch

    from uino_deploy.model.checkpoint import load_checkpoint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model_segmenter(load_checkpoint(path).to(device))


def query_logits(model: UinoFSS, shots: Shots, query: UInt8) -> Float32:
    """Segment one query.

    Args:
        model: in evaluation mode, on any device.
        shots: the support images and their masks.
        query: uint8 RGB [H, W, 3].

    Returns:
        float32 [H, W], at the query's own size.
    """
    return upsample_logits(_forward(model, shots, query).logits, *query.shape[:2])


def _forward(model: UinoFSS, shots: Shots, query: UInt8) -> Answer:
    import torch

    with torch.inference_mode():
        image, images, shares = _tensors(model, shots, query)
        support, (early, deep) = model.enroll(images, shares), model.encoder(image)
        logits, iou = model.decode(early, deep, support)
    ours, known, asked, marked = (
        tensor.float().cpu().numpy() for tensor in (logits[0, 0], support.deep[0], deep, shares[0])
    )
    tokens = Tokens(_last_layer(known), marked, _last_layer(asked)[0])
    mask = (upsample_logits(ours, *query.shape[:2]) > 0).astype(np.uint8)
    return Answer(mask, ours, float(iou), tokens)


def _tensors(model: UinoFSS, shots: Shots, query: UInt8) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [1, 3, S, S], support [1, K, 3, S, S] and its masks [1, K, N]."""
    import torch

    size, patch = model.config.image_size, model.config.encoder.patch
    images = np.stack([preprocess_image(image, size) for image, _ in shots])
    masks = np.stack([preprocess_mask(mask, size, patch) for _, mask in shots])
    device = next(model.parameters()).device
    arrays = preprocess_image(query, size), images, masks
    image, support, shares = (torch.from_numpy(array)[None].to(device) for array in arrays)
    return image, support, shares
