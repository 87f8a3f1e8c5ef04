"""Segmenters to judge: a bundle on its backend, a model in PyTorch, its prototypes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.data.episodes import Episode, draw_episode
from uino_deploy.data.pools import Pool
from uino_deploy.evaluation import pools
from uino_deploy.evaluation.metrics import SegmentationScore
from uino_deploy.evaluation.runs import Segment, Shots
from uino_deploy.images import Float32, UInt8, preprocess_image, preprocess_mask, upsample_logits

if TYPE_CHECKING:
    from torch import Tensor

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
    return lambda shots, query: (query_logits(model, shots, query) > 0).astype(np.uint8)


def episode_segmenter(model: UinoFSS, threshold: float = 0.0) -> pools.Segment:
    """Return a model as a segmenter of drawn episodes: logits above `threshold`, at full size."""
    return lambda episode: query_logits(model, *_arrays(episode)) > threshold


def query_logits(model: UinoFSS, shots: Shots, query: UInt8) -> Float32:
    """Segment one query.

    Args:
        model: in evaluation mode, on any device.
        shots: images (uint8 RGB [H, W, 3]) and their masks ([H, W], non-zero is foreground).
        query: uint8 RGB [H, W, 3].

    Returns:
        [H, W] of the query's own size.
    """
    import torch

    with torch.inference_mode():
        images, support, masks = _tensors(model, shots, query)
        logits, _ = model(images, support, masks)
    return _at_own_size(logits[0, 0], query)


def prototype_segmenter(model: UinoFSS, threshold: float) -> pools.Segment:
    """Return the baseline: the encoder's similarity to the prototypes, cut at a threshold."""
    similarity = _prototype_similarity(model)
    return lambda episode: similarity(episode) > threshold


def best_prototype_threshold(model: UinoFSS, pool: Pool, episodes: int, seed: int) -> float:
    """Return the threshold of `prototype_segmenter` with the highest mIoU on a pool.

    Args:
        model: the model whose encoder is used.
        pool: the classes to choose on: the base classes, never the judged ones.
        episodes: one-shot episodes to draw.
        seed: of the episodes.
    """
    similarity = _prototype_similarity(model)
    thresholds: list[float] = np.linspace(-1, 1, 81).tolist()
    scores = [SegmentationScore(len(pool.labels)) for _ in thresholds]
    for index in range(episodes):
        episode = draw_episode(pool, seed, index, size=model.config.image_size)
        found = similarity(episode)
        for score, threshold in zip(scores, thresholds, strict=True):
            score.add(episode.label, found > threshold, episode.query.mask)
    best = int(np.argmax([score.miou for score in scores]))
    return thresholds[best]


def _prototype_similarity(model: UinoFSS) -> Callable[[Episode], Float32]:
    import torch

    def similarity(episode: Episode) -> Float32:
        shots, image = _arrays(episode)
        with torch.inference_mode():
            query, support, masks = _tensors(model, shots, image)
            features = model.enroll(support, masks)
            _, deep = model.encoder(query)
            found = model.prompt_generator.similarity_map(deep, features.prototypes)
        grid = model.config.grid
        return _at_own_size(found[0].reshape(grid, grid), image)

    return similarity


def _arrays(episode: Episode) -> tuple[Shots, UInt8]:
    return [(scene.image, scene.mask) for scene in episode.support], episode.query.image


def _tensors(model: UinoFSS, shots: Shots, query: UInt8) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [1, 3, S, S], support [1, K, 3, S, S] and its masks [1, K, N]."""
    import torch

    size, patch = model.config.image_size, model.config.encoder.patch
    images = np.stack([preprocess_image(image, size) for image, _ in shots])
    masks = np.stack([preprocess_mask(mask, size, patch) for _, mask in shots])
    device = next(model.parameters()).device
    arrays = preprocess_image(query, size), images, masks
    made, support, shares = (torch.from_numpy(array)[None].to(device) for array in arrays)
    return made, support, shares


def _at_own_size(plane: Tensor, image: UInt8) -> Float32:
    return upsample_logits(plane.float().cpu().numpy(), *image.shape[:2])
