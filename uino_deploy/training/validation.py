"""The validation of a training: fixed episodes of images or classes that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.episode_list import draw_list
from uino_deploy.evaluation.metrics import count_pixels, score_counts
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.samples import Sample, load_sample, segment_samples
from uino_deploy.training.token_cache import TokenSource

_SEED = 3  # of the validation's episodes; training and evaluation have their own


class Held(NamedTuple):
    """The images and the episodes that judge a training.

    Attributes:
        dataset: the images.
        episodes: each once.
        words: what is held out, for people.
    """

    dataset: Dataset
    episodes: list[ListedEpisode]
    words: str


def draw_held(dataset: Dataset, words: str, shots: int, count: int) -> Held:
    """Draw held-out episodes: the same for the same images, at most `count`, each once."""
    drawn = draw_list(dataset, count, shots, _SEED)
    return Held(dataset, list(dict.fromkeys(drawn)), words)


def validation_miou(model: UinoFSS, held: Held, source: TokenSource) -> float:
    """Return the mIoU of a model in training on the held-out episodes, in per cent.

    Unlike `evaluation`, pixels are counted at the model's image size, which is much faster.

    Args:
        model: in evaluation mode.
        held: the episodes.
        source: gives the images' tokens.
    """
    counts = []
    for listed in held.episodes:
        sample = load_sample(held.dataset, listed, source, model.config)
        counts.append(_counts(model, sample))
    labels = [listed.label for listed in held.episodes]
    return score_counts(len(held.dataset.classes), labels, np.array(counts)).miou


def _counts(model: UinoFSS, sample: Sample) -> Sequence[int]:
    batch = Sample(*(each[None].to(model.encoder.pos_embed.device) for each in sample))
    logits, _ = segment_samples(model, batch)
    found = _upsampled(logits, sample.truth) > 0
    return count_pixels(found.cpu().numpy(), sample.truth.numpy()).tolist()


def _upsampled(logits: Tensor, truth: Tensor) -> Tensor:
    plane: Tensor = F.interpolate(logits.float(), size=truth.shape, mode="bilinear")[0, 0]
    return plane
