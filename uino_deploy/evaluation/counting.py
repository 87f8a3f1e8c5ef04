"""How well objects are counted and parted, in drawn scenes with several copies of one class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.copies import CountingEpisode, draw_copies
from uino_deploy.evaluation.segmenters import Segmenter
from uino_deploy.images import UInt8, sigmoid, upsample_logits
from uino_deploy.images.instances import (
    Instances,
    connected_parts,
    describe_parts,
    find_instances,
    part_objects,
)

COUNTED_ON = "things-unseen-hand"
"""The data set that the scenes are like: held-out things by the unseen hand."""

_MATCHED = 0.5  # the IoU from which an object is found

Found = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""The objects found in a scene: their masks [C, S, S], and their scores [C]."""


@dataclass(frozen=True)
class Counting:
    """The figures of one way to part masks, over all scenes.

    Attributes:
        masks: "true", or "predicted" by the model.
        parted: "components", the baseline: what is connected is one object; or "necks", as
            `predict --instances` parts.
        error: mean absolute difference of the counts.
        exact: share of the scenes whose count is right.
        ap50: average precision of the objects at an IoU of 0.5; on true masks the larger object
            counts as the surer one.
    """

    masks: str
    parted: str
    error: float
    exact: float
    ap50: float


def measure_counting(
    segmenter: Segmenter,
    scenes: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> list[Counting]:
    """Count the copies in scenes that `draw_copies` draws, on true and on predicted masks.

    Args:
        segmenter: the model.
        scenes: the number of scenes.
        seed: the seed of the scenes.
        done: called after each scene.

    Raises:
        DependencyError: scikit-image is not installed.
    """
    copies: list[NDArray[np.bool_]] = []
    found: dict[tuple[str, str], list[Found]] = {}
    for index in range(scenes):
        episode = draw_copies(seed, index)
        copies.append(episode.copies)
        for way, objects in _objects(segmenter, episode).items():
            found.setdefault(way, []).append(objects)
        done()
    return [_figures(*way, copies, objects) for way, objects in found.items()]


def counting_document(rows: Sequence[Counting], scenes: int) -> dict[str, Any]:
    """Return the figures as plain values."""
    return {
        "scenes": scenes,
        "rows": [
            {
                "masks": row.masks,
                "parted": row.parted,
                "count_error": round(row.error, 3),
                "exact": round(row.exact, 3),
                "ap50": round(row.ap50, 3),
            }
            for row in rows
        ],
    }


def average_precision(truths: Sequence[NDArray[np.bool_]], found: Sequence[Found]) -> float:
    """Return the area under precision over recall, precision made to fall as COCO's is.

    The surest object takes the true one that it overlaps most, if no surer one has taken it.

    Args:
        truths: for each scene its true objects, bool [C, S, S].
        found: for each scene the objects found and their scores.
    """
    ious = [_ious(masks, true) for (masks, _), true in zip(found, truths, strict=True)]
    ranked = sorted(
        ((score, scene, row) for scene, (_, scores) in enumerate(found)
         for row, score in enumerate(scores.tolist())),
        key=lambda each: -each[0],
    )  # fmt: skip
    hits = []
    for _, scene, row in ranked:
        overlaps = ious[scene][row]
        best = int(overlaps.argmax())
        hits.append(bool(overlaps[best] >= _MATCHED))
        if hits[-1]:
            ious[scene][:, best] = 0  # taken
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((falling * hits).sum() / sum(map(len, truths)))


def _objects(segmenter: Segmenter, episode: CountingEpisode) -> dict[tuple[str, str], Found]:
    """Return the objects of a scene for every kind of mask and every way to part it."""
    support = episode.support
    predicted = segmenter.answer([(support.image, support.mask)], episode.image)
    truth: UInt8 = np.any(episode.copies, axis=0).astype(np.uint8)
    probability = sigmoid(upsample_logits(predicted.logits, *truth.shape))
    sure = np.ones(truth.shape, np.float32)
    return {
        ("true", "components"): _found(describe_parts(connected_parts(truth), sure)),
        ("true", "necks"): _found(describe_parts(part_objects(truth), sure)),
        ("predicted", "components"): _found(
            describe_parts(connected_parts(predicted.mask), probability)
        ),
        ("predicted", "necks"): _found(
            find_instances(predicted.mask, predicted.logits, predicted.iou)
        ),
    }


def _found(instances: Instances) -> Found:
    masks = [instances.mask(index) != 0 for index in range(len(instances.objects))]
    shape = (len(masks), *instances.labels.shape)
    scores = [each.score for each in instances.objects]
    return np.array(masks, np.bool_).reshape(shape), np.array(scores)


def _figures(
    masks: str, parted: str, truths: Sequence[NDArray[np.bool_]], found: Sequence[Found]
) -> Counting:
    pairs = zip(found, truths, strict=True)
    errors = np.array([abs(len(objects) - len(true)) for (objects, _), true in pairs])
    return Counting(
        masks,
        parted,
        float(errors.mean()),
        float((errors == 0).mean()),
        average_precision(truths, found),
    )


def _ious(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the IoU of every object found with every true one, [found, true]."""
    one, other = (
        each.reshape(len(each), true[0].size).astype(np.float64) for each in (found, true)
    )
    both = one @ other.T
    union = one.sum(axis=1)[:, None] + other.sum(axis=1) - both
    ious: NDArray[np.float64] = both / np.maximum(union, 1)
    return ious
