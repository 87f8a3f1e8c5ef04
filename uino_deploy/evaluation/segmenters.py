"""Segmenters for a run: a bundle on its backend, or a checkpoint in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.evaluation.runs import Segment, Shots
from uino_deploy.images import UInt8, preprocess_image, preprocess_mask, upsample_logits

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.runtime import Predictor


def bundle_segmenter(predictor: Predictor) -> Segment:
    """Return a bundle as a segmenter: each episode's class is enrolled, then found."""

    def segment(shots: Shots, query: UInt8) -> UInt8:
        support = predictor.enroll(list(shots), "episode")
        return predictor.predict(query, support).mask

    return segment


def model_segmenter(model: UinoFSS) -> Segment:
    """Return a model as a segmenter: logits above 0 at the query's own size.

    Args:
        model: in evaluation mode.
    """
    import torch

    size, patch = model.config.image_size, model.config.encoder.patch
    device = next(model.parameters()).device

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array)[None].to(device)

    @torch.inference_mode()
    def segment(shots: Shots, query: UInt8) -> UInt8:
        images = np.stack([preprocess_image(image, size) for image, _ in shots])
        masks = np.stack([preprocess_mask(mask, size, patch) for _, mask in shots])
        logits, _ = model(tensor(preprocess_image(query, size)), tensor(images), tensor(masks))
        plane = logits[0, 0].float().cpu().numpy()
        return (upsample_logits(plane, *query.shape[:2]) > 0).astype(np.uint8)

    return segment
