"""PyTorch segmenters for `evaluate_episodes`: the model, and its prototypes alone as a baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uino_deploy.config import UinoConfig
from uino_deploy.data.episodes import Episode, draw_episode
from uino_deploy.data.evaluation import Segment
from uino_deploy.data.metrics import SegmentationScore
from uino_deploy.data.pools import Pool
from uino_deploy.images import preprocess_image, preprocess_mask, upsample_logits
from uino_deploy.model.segmenter import UinoFSS


def model_segmenter(model: UinoFSS, threshold: float = 0.0) -> Segment:
    """Return the model as a segmenter: logits above `threshold` at the query's own size."""

    @torch.inference_mode()
    def segment(episode: Episode) -> NDArray[np.bool_]:
        query, support, masks = _tensors(episode, model.config)
        logits, _ = model(query, support, masks)
        return _at_own_size(logits[0, 0], episode) > threshold

    return segment


def prototype_segmenter(model: UinoFSS, threshold: float) -> Segment:
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


def _prototype_similarity(model: UinoFSS) -> Callable[[Episode], NDArray[np.float32]]:
    @torch.inference_mode()
    def similarity(episode: Episode) -> NDArray[np.float32]:
        query, support, masks = _tensors(episode, model.config)
        features = model.enroll(support, masks)
        _, deep = model.encoder(query)
        found = model.prompt_generator.similarity_map(deep, features.prototypes)
        grid = model.config.grid
        return _at_own_size(found[0].reshape(grid, grid), episode)

    return similarity


def _tensors(episode: Episode, config: UinoConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [1, 3, S, S], support [1, K, 3, S, S] and its masks [1, K, N]."""
    size, patch = config.image_size, config.encoder.patch
    query = preprocess_image(episode.query.image, size)[None]
    support = np.stack([preprocess_image(scene.image, size) for scene in episode.support])[None]
    masks = np.stack([preprocess_mask(scene.mask, size, patch) for scene in episode.support])[None]
    return torch.from_numpy(query), torch.from_numpy(support), torch.from_numpy(masks)


def _at_own_size(plane: Tensor, episode: Episode) -> NDArray[np.float32]:
    height, width = episode.query.mask.shape
    return upsample_logits(plane.float().numpy(), height, width)
