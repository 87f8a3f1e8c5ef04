"""Segment the demo's episodes: with the bundle, with PyTorch and with the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from uino_deploy.data import Episode, Pool, draw_episode
from uino_deploy.evaluation.metrics import SegmentationScore
from uino_deploy.evaluation.pools import EVALUATION_SEED
from uino_deploy.images import preprocess_image, preprocess_mask, upsample_logits
from uino_deploy.runtime import Encoded, Predictor, Result, Support
from uino_deploy.runtime.session import to_host

if TYPE_CHECKING:
    from torch import Tensor

    from uino_deploy.model import UinoFSS

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Step = Callable[[], None]

REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Outcome:
    """One episode, segmented.

    Attributes:
        index: position in the sequence of episodes.
        name: the class, as it names files.
        title: the class, for people.
        episode: what was drawn.
        support: the enrolled class.
        result: what the bundle found.
        similarity: float32 [H, W], the baseline: how much nearer each place of the query is to the
            support's foreground prototype than to its background prototype.
        seconds: how long the query took, preprocessing and upsampling included.
    """

    index: int
    name: str
    title: str
    episode: Episode
    support: Support
    result: Result
    similarity: Float32
    seconds: float

    @property
    def iou(self) -> float:
        """Intersection over union of the prediction and the truth, 0 to 1."""
        found, real = self.result.mask != 0, self.episode.query.mask != 0
        return float(np.count_nonzero(found & real) / np.count_nonzero(found | real))


def segment(
    predictor: Predictor, pool: Pool, count: int, step: Step = lambda: None
) -> list[Outcome]:
    """Enroll and segment the first `count` 1-shot episodes of a pool with a bundle.

    Args:
        predictor: the bundle.
        pool: the classes; every `len(pool.labels)` episodes show each of them once.
        count: how many episodes.
        step: called after each.
    """
    outcomes = []
    for index in range(count):
        episode = draw_episode(pool, EVALUATION_SEED, index)
        name, title = class_name(pool, episode.label)
        (shot,) = episode.support
        support = predictor.enroll([(shot.image, shot.mask)], name)
        begun = time.perf_counter()
        encoded = predictor.encode(episode.query.image)
        result = predictor.predict(encoded, support)
        seconds = time.perf_counter() - begun
        similarity = prototype_similarity(encoded, support)
        outcomes.append(Outcome(index, name, title, episode, support, result, similarity, seconds))
        step()
    return outcomes


def class_name(pool: Pool, label: int) -> tuple[str, str]:
    """Return a class's name for files, such as `u00e6`, and for people, such as `æ U+00E6`."""
    character = pool.labels[label]
    code = f"{ord(character):04x}"
    return f"u{code}", f"{character} U+{code.upper()}"


def prototype_similarity(encoded: Encoded, support: Support) -> Float32:
    """Return cos(token, foreground prototype) - cos(token, background prototype), upsampled.

    Args:
        encoded: the query; the tokens of its last deep layer are used.
        support: the enrolled class.

    Returns:
        float32 [H, W] at the query's own size.
    """
    tokens = _unit(to_host(encoded.deep)[0, -1].astype(np.float32))
    foreground, background = _unit(support.prototypes.astype(np.float32))
    grid = round(len(tokens) ** 0.5)
    plane = (tokens @ (foreground - background)).reshape(grid, grid)
    return upsample_logits(plane, encoded.height, encoded.width)


def score(pool: Pool, outcomes: Sequence[Outcome], masks: Sequence[UInt8]) -> SegmentationScore:
    """Score masks, one for each outcome, against the truths."""
    total = SegmentationScore(len(pool.labels))
    for outcome, mask in zip(outcomes, masks, strict=True):
        total.add(outcome.episode.label, mask, outcome.episode.query.mask)
    return total


def baseline_miou(pool: Pool, outcomes: Sequence[Outcome]) -> float:
    """Return the baseline's mIoU at the one threshold that suits it best, of 41 tried.

    The threshold is chosen on the very queries that are scored: the baseline is flattered.
    """
    lowest = min(float(outcome.similarity.min()) for outcome in outcomes)
    highest = max(float(outcome.similarity.max()) for outcome in outcomes)
    return max(
        score(pool, outcomes, [(each.similarity > threshold).astype(np.uint8) for each in outcomes])
        .miou
        for threshold in np.linspace(lowest, highest, 43)[1:-1]
    )  # fmt: skip


def reference_masks(model: UinoFSS, outcomes: Sequence[Outcome], step: Step) -> list[UInt8]:
    """Segment the same episodes with PyTorch.

    Args:
        model: in evaluation mode.
        outcomes: the episodes.
        step: called after each.
    """
    import torch

    size, patch = model.config.image_size, model.config.encoder.patch
    masks: list[UInt8] = []
    for first in range(0, len(outcomes), REFERENCE_BATCH):
        episodes = [outcome.episode for outcome in outcomes[first : first + REFERENCE_BATCH]]
        shots = [episode.support[0] for episode in episodes]
        with torch.inference_mode():
            logits, _ = model(
                _stack(preprocess_image(episode.query.image, size) for episode in episodes),
                _stack(preprocess_image(shot.image, size)[None] for shot in shots),
                _stack(preprocess_mask(shot.mask, size, patch)[None] for shot in shots),
            )
        for episode, plane in zip(episodes, logits[:, 0].numpy(), strict=True):
            mask = upsample_logits(plane, *episode.query.mask.shape) > 0
            masks.append(mask.astype(np.uint8))
            step()
    return masks


def _unit(vectors: Float32) -> Float32:
    """Scale the rows to length 1."""
    lengths: Float32 = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Float32 = vectors / np.maximum(lengths, np.float32(1e-12))
    return unit


def _stack(arrays: Iterable[Float32]) -> Tensor:
    import torch

    return torch.from_numpy(np.stack(list(arrays)))
