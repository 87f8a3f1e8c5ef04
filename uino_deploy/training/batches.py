"""Batches of episodes as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uino_deploy.config import UinoConfig
from uino_deploy.data.episodes import draw_episode
from uino_deploy.data.pools import Pool
from uino_deploy.data.scenes import PLAIN, Deformation
from uino_deploy.images import preprocess_image

NO_GLYPH = -1
"""Label where a scene has fewer glyphs than the batch's fullest."""


class Batch(NamedTuple):
    """B one-shot episodes: 2B scenes, the supports first, then the queries in the same order.

    Attributes:
        images: [2B, 3, S, S], normalised.
        shares: [2B, G, N], the share of each patch that every glyph covers; the episode's target
            is glyph 0.
        labels: [2B, G], class numbers; `NO_GLYPH` where there is none.
        truth: [B, S, S], the targets' masks in the queries, 0 or 1.
    """

    images: Tensor
    shares: Tensor
    labels: Tensor
    truth: Tensor


def draw_batch(
    pools: Sequence[Pool],
    config: UinoConfig,
    seed: int,
    step: int,
    episodes: int,
    deformation: Deformation = PLAIN,
) -> Batch:
    """Draw a training step's episodes; the same arguments give the same batch.

    The pools take turns, so that an episode's glyphs are all of one pool: between a printed
    target and written distractors the style would give the answer away.

    Args:
        pools: their classes are numbered on from one pool to the next.
        config: the model's sizes.
        seed: the sequence of episodes.
        step: which batch of it.
        episodes: in the batch, B.
        deformation: of every glyph.
    """
    size, patch = config.image_size, config.encoder.patch
    first = step * episodes
    drawn = []
    for number in range(first, first + episodes):
        index, turn = divmod(number, len(pools))
        drawn.append(draw_episode(pools[turn], seed, index, size=size, deformation=deformation))
    scenes = [episode.support[0] for episode in drawn] + [episode.query for episode in drawn]
    starts = np.cumsum([0] + [len(pool.labels) for pool in pools])
    offsets = [starts[number % len(pools)] for number in range(first, first + episodes)] * 2
    glyphs = max(len(scene.labels) for scene in scenes)
    shares = np.zeros((len(scenes), glyphs, config.tokens), dtype=np.float32)
    labels = np.full((len(scenes), glyphs), NO_GLYPH)
    for row, each in enumerate(scenes):
        labels[row, : len(each.labels)] = offsets[row] + np.array(each.labels)
        shares[row, : len(each.labels)] = patch_shares(each.scene.masks, patch)
    return Batch(
        images=torch.from_numpy(np.stack([preprocess_image(s.image, size) for s in scenes])),
        shares=torch.from_numpy(shares),
        labels=torch.from_numpy(labels),
        truth=torch.from_numpy(np.stack([episode.query.mask for episode in drawn])).float(),
    )


def patch_shares(masks: NDArray[np.bool_], patch: int) -> NDArray[np.float32]:
    """Return what `preprocess_mask` gives for masks that have the model's size already.

    Args:
        masks: [G, S, S].
        patch: side of a patch in pixels; divides S.

    Returns:
        [G, N]: one call for all glyphs of a scene takes a tenth of the time.
    """
    glyphs, size, _ = masks.shape
    grid = size // patch
    shares = masks.reshape(glyphs, grid, patch, grid, patch).mean(axis=(2, 4), dtype=np.float32)
    return shares.reshape(glyphs, grid * grid)
