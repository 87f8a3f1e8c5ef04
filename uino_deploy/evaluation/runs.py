"""A run: what one segmenter did on each episode of a list; kept as a file, compared with others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.episode_list import fingerprint
from uino_deploy.errors import InputError
from uino_deploy.evaluation.intervals import Interval, bootstrap, bootstrap_difference
from uino_deploy.evaluation.metrics import Counts, SegmentationScore, count_pixels
from uino_deploy.images import UInt8

SCHEMA = "1.0"

Shots = Sequence[tuple[UInt8, UInt8]]
Segment = Callable[[Shots, UInt8], UInt8]
"""From support images and masks (0 and 1), and a query, to the query's mask [H, W]."""


@dataclass(frozen=True, eq=False)
class Run:
    """Counted pixels of every episode of a list.

    Attributes:
        name: of the model, a file's or a folder's name.
        classes: the data set's classes.
        labels: the class of each episode.
        counts: [episodes, 4], as `metrics.Counts`.
        episodes_sha256: two runs with the same one can be compared episode by episode.
        seconds: how long the run took, reading images included.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    counts: Counts
    episodes_sha256: str
    seconds: float

    @property
    def score(self) -> SegmentationScore:
        """The accumulated figures."""
        return SegmentationScore.of(len(self.classes), self.labels, self.counts)

    def document(self) -> dict[str, Any]:
        """Return the figures as plain values: per cent, and 95 % intervals."""
        score, intervals = self.score, bootstrap(len(self.classes), self.labels, self.counts)
        shown = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return {
            "model": self.name,
            "miou": round(score.miou, 3),
            "miou_interval": _rounded(intervals.miou),
            "fb_iou": round(score.fb_iou, 3),
            "fb_iou_interval": _rounded(intervals.fb_iou),
            "per_class": {
                self.classes[label]: {"iou": round(iou, 3), "episodes": shown[label]}
                for label, iou in score.class_ious.items()
            },
            "episodes": len(self.labels),
            "episodes_sha256": self.episodes_sha256,
            "seconds": round(self.seconds, 2),
        }


def run_episodes(
    name: str,
    segment: Segment,
    dataset: Dataset,
    episodes: Sequence[ListedEpisode],
    done: Callable[[], None] = lambda: None,
) -> Run:
    """Segment every query of a list and count its pixels at its own size.

    In a support, ignored pixels are background, as in common use.

    Args:
        name: of what is judged.
        segment: what is judged.
        dataset: where the images are.
        episodes: the list.
        done: called after each episode.

    Raises:
        InputError: an image or a mask is missing, unreadable, or they differ in size.
    """
    began = time.monotonic()
    counts = np.zeros((len(episodes), 4), dtype=np.int64)
    for row, episode in enumerate(episodes):
        shots = [_pair(dataset, key, episode.label) for key in episode.support]
        query, truth = _pair(dataset, episode.query, episode.label)
        found = segment([(image, (mask == 1).astype(np.uint8)) for image, mask in shots], query)
        counts[row] = count_pixels(found, truth)
        done()
    return Run(
        name,
        dataset.classes,
        tuple(episode.label for episode in episodes),
        counts,
        fingerprint(dataset, episodes),
        time.monotonic() - began,
    )


def compare(run: Run, against: Run) -> dict[str, Any]:
    """Return the difference of two runs' figures (`run` - `against`) as plain values.

    Raises:
        InputError: the runs are of different episodes.
    """
    if run.episodes_sha256 != against.episodes_sha256:
        raise InputError(
            f"{against.name} was run on other episodes than {run.name}",
            "give both the same --episode-list, or the same data set, seed, shots and count",
        )
    intervals = bootstrap_difference(len(run.classes), run.labels, run.counts, against.counts)
    return {
        "model": against.name,
        "miou": round(against.score.miou, 3),
        "fb_iou": round(against.score.fb_iou, 3),
        "difference": round(run.score.miou - against.score.miou, 3),
        "difference_interval": _rounded(intervals.miou),
        "fb_iou_difference": round(run.score.fb_iou - against.score.fb_iou, 3),
        "fb_iou_difference_interval": _rounded(intervals.fb_iou),
    }


class _Detail(msgspec.Struct):
    """A run as a results file holds it, so that other runs can be compared with it."""

    model: str
    fold: int | None
    classes: list[str]
    labels: list[int]
    counts: list[tuple[int, int, int, int]]
    episodes_sha256: str
    seconds: float


class _Results(msgspec.Struct):
    """What `read_runs` needs of a results file; the rest is for people."""

    schema_version: str
    runs: list[_Detail]


def detail(runs: Mapping[int | None, Run]) -> dict[str, Any]:
    """Return what a results file holds beside the figures.

    Args:
        runs: by fold; None where the data set has no folds.
    """
    kept = [
        _Detail(
            run.name,
            fold,
            list(run.classes),
            list(run.labels),
            run.counts.tolist(),
            run.episodes_sha256,
            run.seconds,
        )
        for fold, run in runs.items()
    ]
    return {"schema_version": SCHEMA, "runs": msgspec.to_builtins(kept)}


def read_runs(path: Path) -> dict[int | None, Run]:
    """Read the runs in a results file, by fold.

    Raises:
        InputError: the file cannot be read, or was not written by `uino-deploy evaluate -o`.
    """
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_Results)
    except OSError as error:
        raise InputError(f"results {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path} holds no evaluation's results: {error}") from error
    if read.schema_version.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise InputError(f"{path} is of schema {read.schema_version}, this program reads {SCHEMA}")
    return {each.fold: _checked(each, path) for each in read.runs}


def _checked(read: _Detail, path: Path) -> Run:
    counts = np.asarray(read.counts, dtype=np.int64).reshape(-1, 4)
    inside = all(0 <= label < len(read.classes) for label in read.labels)
    if not inside or len(counts) != len(read.labels):
        raise InputError(f"{path} is damaged", "run the evaluation again")
    return Run(
        read.model,
        tuple(read.classes),
        tuple(read.labels),
        counts,
        read.episodes_sha256,
        read.seconds,
    )


def _pair(dataset: Dataset, key: str, label: int) -> tuple[UInt8, UInt8]:
    image, mask = dataset.image(key), dataset.mask(key, label)
    if image.shape[:2] != mask.shape:
        raise InputError(f"image {key} is {image.shape[:2]}, its mask {mask.shape}")
    return image, mask


def _rounded(interval: Interval) -> list[float]:
    return [round(interval.low, 3), round(interval.high, 3)]
