"""Segmenters for a run: a bundle on its backend, or a checkpoint in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.evaluation.runs import Segment, Shots
from uino_deploy.images import UInt8

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
    from uino_deploy.training.segmenters import query_logits

    return lambda shots, query: (query_logits(model, shots, query) > 0).astype(np.uint8)
