"""Segmenters: the common form in which models are evaluated and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.bundle.signature import note_unchecked
from uino_deploy.images import Float32, UInt8, preprocess_image, preprocess_mask, upsample_logits
from uino_deploy.runtime import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from uino_deploy.model.segmenter import UinoFSS

Shots = Sequence[tuple[UInt8, UInt8]]
"""Support images, uint8 RGB [H, W, 3], with their masks, uint8 [H, W] of 0 and 1."""

Segment = Callable[[Shots, UInt8], UInt8]
"""A segmenter: from the shots of a class and a query image to the query's mask [H, W], 0 and 1."""

Load = Callable[[Path], Predictor]
"""Opens the bundle in a folder on a backend."""


def bundle_segmenter(predictor: Predictor) -> Segment:
    """Return a bundle as a segmenter; it enrolls the class again for each query."""

    def segment(shots: Shots, query: UInt8) -> UInt8:
        support = predictor.enroll(list(shots), "episode")
        return predictor.predict(query, support).mask

    return segment


def model_segmenter(model: UinoFSS) -> Segment:
    """Return a PyTorch model as a segmenter; the mask is where its logits exceed 0.

    Args:
        model: in evaluation mode, on any device.
    """
    return lambda shots, query: (query_logits(model, shots, query) > 0).astype(np.uint8)


def open_segmenter(path: Path, load: Load = Predictor.load) -> Segment:
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
    import torch

    with torch.inference_mode():
        logits, _ = model(*_tensors(model, shots, query))
    return upsample_logits(logits[0, 0].float().cpu().numpy(), *query.shape[:2])


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
