"""Batches of episodes as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uino_deploy.child import end_with_parent
from uino_deploy.config import UinoConfig
from uino_deploy.data.episodes import draw_episode
from uino_deploy.data.pools import Pool, load_pool, roughened
from uino_deploy.data.scenes import PLAIN, Deformation
from uino_deploy.data.thing_episodes import ThingScene, sample_episode
from uino_deploy.data.things import Things
from uino_deploy.images import UInt8, preprocess_image
from uino_deploy.training.recipe import Recipe

NO_CLASS = -1
"""Label of padding: the scene has fewer things than the batch's fullest one."""

_Row = tuple[NDArray[np.int64], NDArray[np.bool_]]  # class numbers, and masks [G, S, S]


class Batch(NamedTuple):
    """B one-shot episodes: 2B scenes, the supports first, then the queries in the same order.

    Attributes:
        images: [2B, 3, S, S], normalised.
        shares: [2B, G, N], the fraction of each patch that each thing covers; the episode's target
            is thing 0. Where a query does not show it, its shares are zero.
        labels: [2B, G], class numbers; `NO_CLASS` for padding and for absent targets.
        truth: [B, S, S], the targets' masks in the queries, 0 or 1.
    """

    images: Tensor
    shares: Tensor
    labels: Tensor
    truth: Tensor


class Batches(Dataset[Batch]):
    """All batches of a training run by number, as its recipe and seed determine them.

    Args:
        config: the model's sizes.
        recipe: what to draw, the episodes in a batch, and the stages.
        seed: selects the sequence of episodes.
    """

    def __init__(self, config: UinoConfig, recipe: Recipe, seed: int) -> None:
        self._config = config
        self._recipe = recipe
        self._seed = seed
        self._deformations = [s.deformation for s in recipe.stages for _ in range(s.steps)]

    @cached_property
    def pools(self) -> tuple[Pool, ...]:
        """The classes to draw from, which take turns."""
        drawn_from = self._recipe.drawn_from.items()
        return tuple(roughened(load_pool(name), share) for name, share in drawn_from)

    @cached_property
    def classes(self) -> int:
        """The number of classes to train on."""
        if not self.pools:
            return len(Things.load().concepts("training"))
        return sum(len(pool.labels) for pool in self.pools)

    @cached_property
    def families(self) -> tuple[int, ...] | None:
        """The family of each class, such as birds; None if classes have none."""
        if self.pools:
            return None
        things = Things.load()
        return tuple(things.families[things.concepts("training")].tolist())

    def __len__(self) -> int:
        """Return the number of batches, one for each step of all stages."""
        return len(self._deformations)

    def __getitem__(self, number: int) -> Batch:
        """Draw the batch of a step, counted from 0 through all stages."""
        count = self._recipe.episodes
        if not self.pools:
            return draw_things(self._config, self._seed, number, count, self._recipe.absent)
        deformation = self._deformations[number]
        return draw_batch(self.pools, self._config, self._seed, number, count, deformation)

    def drawn_ahead(self, first: int) -> Iterator[Batch]:
        """Yield the batches from a number on, drawn by another process to save a third of a step.

        Args:
            first: the number of the first batch.
        """
        loader = DataLoader(
            Batches(self._config, self._recipe, self._seed),  # sprites cannot be pickled
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=1,
            generator=torch.Generator(),  # leaves the global random state alone
            # A forked process may hang on OpenMP's threads.
            multiprocessing_context="spawn",
            worker_init_fn=end_with_parent,
        )
        yield from loader


def draw_batch(
    pools: Sequence[Pool],
    config: UinoConfig,
    seed: int,
    step: int,
    episodes: int,
    deformation: Deformation = PLAIN,
) -> Batch:
    """Draw a training step's episodes; the same arguments give the same batch.

    The pools take turns, so that all glyphs of an episode come from one pool: with a printed
    target and handwritten distractors the style would give the answer away.

    Args:
        pools: the classes, numbered consecutively across pools.
        config: the model's sizes.
        seed: selects the sequence of episodes.
        step: the batch's number in that sequence.
        episodes: episodes in the batch, B.
        deformation: how each glyph is deformed.
    """
    size = config.image_size
    first = step * episodes
    drawn = []
    for number in range(first, first + episodes):
        index, turn = divmod(number, len(pools))
        drawn.append(draw_episode(pools[turn], seed, index, size=size, deformation=deformation))
    scenes = [episode.support[0] for episode in drawn] + [episode.query for episode in drawn]
    starts = np.cumsum([0] + [len(pool.labels) for pool in pools])
    offsets = [starts[number % len(pools)] for number in range(first, first + episodes)] * 2
    rows = [
        (offset + np.array(scene.labels), scene.scene.masks)
        for offset, scene in zip(offsets, scenes, strict=True)
    ]
    images = [scene.image for scene in scenes]
    return _batch(config, images, rows, [episode.query.mask for episode in drawn])


def draw_things(
    config: UinoConfig, seed: int, step: int, episodes: int, absent: float = 0.0
) -> Batch:
    """Draw a training step's episodes of things; the same arguments give the same batch.

    Args:
        config: the model's sizes.
        seed: selects the sequence of episodes.
        step: the batch's number in that sequence.
        episodes: episodes in the batch, B.
        absent: the share of episodes whose query does not show the target.
    """
    rng = np.random.default_rng([seed, step])
    size = config.image_size
    drawn = [
        sample_episode(rng, "training", absent=absent, size=size, varied=True)
        for _ in range(episodes)
    ]
    scenes = [episode.support[0] for episode in drawn] + [episode.query for episode in drawn]
    rows = [_things(scene) for scene in scenes]
    images = [scene.image for scene in scenes]
    return _batch(config, images, rows, [episode.query.mask for episode in drawn])


def _things(scene: ThingScene) -> _Row:
    """Return class numbers and masks of a scene, the target first: empty if it is absent."""
    labels = Things.load().classes(scene.concepts, "training")
    if scene.target in scene.concepts:
        return labels, scene.masks
    nothing = np.zeros_like(scene.masks[:1])
    return np.concatenate([[NO_CLASS], labels]), np.concatenate([nothing, scene.masks])


def _batch(
    config: UinoConfig,
    images: Sequence[UInt8],
    rows: Sequence[_Row],
    truths: Sequence[UInt8],
) -> Batch:
    things = max(len(labels) for labels, _ in rows)
    shares = np.zeros((len(rows), things, config.tokens), dtype=np.float32)
    labels = np.full((len(rows), things), NO_CLASS)
    for row, (own, masks) in enumerate(rows):
        labels[row, : len(own)] = own
        shares[row, : len(own)] = patch_shares(masks, config.encoder.patch)
    prepared = [preprocess_image(image, config.image_size) for image in images]
    return Batch(
        images=torch.from_numpy(np.stack(prepared)),
        shares=torch.from_numpy(shares),
        labels=torch.from_numpy(labels),
        truth=torch.from_numpy(np.stack(truths)).float(),
    )


def patch_shares(masks: NDArray[np.bool_], patch: int) -> NDArray[np.float32]:
    """Return the same as `preprocess_mask` for masks that already have the model's size.

    Args:
        masks: [G, S, S].
        patch: side of a patch in pixels; divides S.

    Returns:
        [G, N]. One call for all glyphs of a scene takes a tenth of the time of separate calls.
    """
    glyphs, size, _ = masks.shape
    grid = size // patch
    shares = masks.reshape(glyphs, grid, patch, grid, patch).mean(axis=(2, 4), dtype=np.float32)
    return shares.reshape(glyphs, grid * grid)
