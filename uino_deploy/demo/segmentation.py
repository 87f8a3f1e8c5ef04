"""Masks of the demo's episodes: from the bundle, from PyTorch and from the baseline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.bundle.presence import unit
from uino_deploy.data import Episode, Pool, draw_episode
from uino_deploy.evaluation.episodes import EVALUATION_SEED
from uino_deploy.evaluation.metrics import SegmentationScore, foreground_iou, score_masks
from uino_deploy.evaluation.segmenters import model_segmenter
from uino_deploy.images import Float32, UInt8, upsample_logits
from uino_deploy.progress import Step
from uino_deploy.runtime import Encoded, Predictor, Result, Support

if TYPE_CHECKING:
    from uino_deploy.model import UinoFSS


@dataclass(frozen=True)
class Outcome:
    """One segmented episode.

    Attributes:
        index: position in the sequence of episodes.
        name: the class's name in files.
        title: the class's name for people.
        episode: the support and query scenes.
        support: the enrolled class.
        result: the bundle's mask and its predicted IoU.
        similarity: float32 [H, W], the baseline: how much nearer each place of the query is to the
            support's foreground prototype than to its background prototype.
        seconds: the query's time, with preprocessing and upsampling.
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
        return foreground_iou(self.result.mask, self.episode.query.mask)


def segment(
    predictor: Predictor, pool: Pool, count: int, step: Step = lambda: None
) -> list[Outcome]:
    """Enroll and segment the first `count` 1-shot episodes of a pool with a bundle.

    Args:
        predictor: the bundle.
        pool: the classes; every `len(pool.labels)` episodes show each of them once.
        count: the number of episodes.
        step: called after each episode.
    """
    outcomes = []
    for index in range(count):
        episode = draw_episode(pool, EVALUATION_SEED, index)
        name, title = class_name(pool, episode.label)
        (shot,) = episode.support
        support = predictor.enroll([(shot.image, shot.mask)], name, calibrated=False)
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
    tokens = unit(encoded.tokens.astype(np.float32))
    foreground, background = unit(support.prototypes.astype(np.float32))
    grid = round(len(tokens) ** 0.5)
    plane = (tokens @ (foreground - background)).reshape(grid, grid)
    return upsample_logits(plane, encoded.height, encoded.width)


def score(pool: Pool, outcomes: Sequence[Outcome], masks: Sequence[UInt8]) -> SegmentationScore:
    """Score masks, one for each outcome, against the truths."""
    episodes = [outcome.episode for outcome in outcomes]
    labels = [episode.label for episode in episodes]
    truths = [episode.query.mask for episode in episodes]
    return score_masks(len(pool.labels), labels, masks, truths)


def baseline_miou(pool: Pool, outcomes: Sequence[Outcome]) -> float:
    """Return the baseline's mIoU at the best of 41 thresholds.

    The threshold is chosen on the very queries that are scored, which flatters the baseline.
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
        step: called after each episode.
    """
    segment_query = model_segmenter(model)
    masks = []
    for outcome in outcomes:
        shots = [(shot.image, shot.mask) for shot in outcome.episode.support]
        masks.append(segment_query(shots, outcome.episode.query.image))
        step()
    return masks
