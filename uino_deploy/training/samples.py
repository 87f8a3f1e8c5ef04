"""Episodes as a training step and its validation read them: encoded images, masks and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from uino_deploy.config import UinoConfig
from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.images import UInt8, preprocess_mask
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.augmentation import KEEP, Change
from uino_deploy.training.token_cache import Tokens, TokenSource


class Sample(NamedTuple):
    """One episode, or a batch of them with one more dimension.

    Attributes:
        early: [N, D], the query's tokens for the adapter.
        deep: [L, N, D], the query's tokens for the prompts.
        support: [K, L, N, D].
        masks: [K, N], the share of each support patch that is the class.
        truth: uint8 [S, S]: 0, 1, or 255 for pixels that do not count.
    """

    early: Tensor
    deep: Tensor
    support: Tensor
    masks: Tensor
    truth: Tensor


def load_sample(
    dataset: Dataset,
    listed: ListedEpisode,
    source: TokenSource,
    config: UinoConfig,
    changes: Sequence[Change] = (),
) -> Sample:
    """Load and encode an episode.

    Args:
        dataset: holds the images.
        listed: the episode.
        source: gives the images' tokens.
        config: the model's.
        changes: what becomes of each support image and of the query, before the encoder; none if
            empty.
    """
    *of_shots, of_query = changes or [KEEP] * (len(listed.support) + 1)
    size, patch = config.image_size, config.encoder.patch
    deep, shares = [], []
    for key, change in zip(listed.support, of_shots, strict=True):
        deep.append(_tokens(source, dataset, key, change).deep)
        mask = change.mask(dataset.mask(key, listed.label))
        shares.append(preprocess_mask(_is_class(mask), size, patch))
    truth = np.zeros((size, size), np.uint8)
    if not listed.absent:
        mask = of_query.mask(dataset.mask(listed.query, listed.label))
        truth = np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
    return Sample(
        *_tokens(source, dataset, listed.query, of_query),
        torch.stack(deep),
        torch.from_numpy(np.stack(shares)),
        torch.from_numpy(truth),
    )


def segment_samples(model: UinoFSS, samples: Sample) -> tuple[Tensor, Tensor]:
    """Return the logits [B, 1, h, w] and the predicted IoU [B, 1] of a batch of samples."""
    support = model.prompt_generator.support_features(samples.support, samples.masks)
    return model.decode(samples.early, samples.deep, support)


def _tokens(source: TokenSource, dataset: Dataset, key: str, change: Change) -> Tokens:
    return source.tokens((key, change), lambda: change.image(dataset.image(key)))


def _is_class(mask: UInt8) -> UInt8:
    shown: NDArray[np.bool_] = mask == 1
    return shown.astype(np.uint8)
