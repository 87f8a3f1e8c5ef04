"""A run: the counted pixels of one segmenter on each episode of a list."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.episode_list import fingerprint
from uino_deploy.errors import InputError
from uino_deploy.evaluation.metrics import Counts, SegmentationScore, count_pixels, score_counts
from uino_deploy.evaluation.segmenters import Segment, Shots
from uino_deploy.images import UInt8

EVALUATION_SEED = 2
"""Seed of the evaluation episodes; training has its own seed."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of a run, in per cent.

    Attributes:
        miou: mean over classes of their accumulated IoU.
        fb_iou: mean of the foreground's and the background's IoU.
        episodes: the number of episodes.
    """

    miou: float
    fb_iou: float
    episodes: int


@dataclass(frozen=True, eq=False)
class Run:
    """Counted pixels of every episode of a list.

    Attributes:
        name: the model's name, that of its file or folder.
        classes: the data set's classes.
        labels: the class of each episode.
        counts: [episodes, 4], as `metrics.Counts`.
        episodes_sha256: over the names of the images; two runs with the same one, and the same
            `images_sha256`, can be compared episode by episode.
        seconds: how long the run took, reading images included.
        images_sha256: over the pixels of all images and masks; empty where it is not known.
        absent: positions of the episodes whose query does not show the class.
        presence: of every episode, how much more the marked area resembles the class than its
            background, and the predicted IoU; empty where it is not known.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    counts: Counts
    episodes_sha256: str
    seconds: float
    images_sha256: str = ""
    absent: tuple[int, ...] = ()
    presence: tuple[tuple[float, float], ...] = ()

    @property
    def score(self) -> SegmentationScore:
        """The accumulated figures."""
        return score_counts(len(self.classes), self.labels, self.counts)

    @property
    def left_empty(self) -> float:
        """Per cent of the queries without the class in which nothing is marked; 0 if all show it.

        There, the union of the mask with the truth is the mask.
        """
        unions = self.counts[list(self.absent), 1]
        return float(100 * np.mean(unions == 0)) if self.absent else 0.0

    @property
    def evaluation(self) -> Evaluation:
        """The figures without the pixel counts."""
        score = self.score
        return Evaluation(score.miou, score.fb_iou, len(self.labels))


def run_episodes(
    name: str,
    segment: Segment,
    dataset: Dataset,
    episodes: Sequence[ListedEpisode],
    done: Callable[[], None] = lambda: None,
) -> Run:
    """Segment every query of a list and count its pixels at its own size.

    Args:
        name: the name of the model.
        segment: the model.
        dataset: holds the images.
        episodes: the list.
        done: called after each episode.

    Raises:
        InputError: an image or a mask is missing or unreadable, or their sizes differ.
    """
    (run,) = run_methods(
        lambda shots, query: {name: segment(shots, query)}, dataset, episodes, done
    ).values()
    return run


def run_methods(
    methods: Callable[[Shots, UInt8], Mapping[str, UInt8]],
    dataset: Dataset,
    episodes: Sequence[ListedEpisode],
    done: Callable[[], None] = lambda: None,
) -> dict[str, Run]:
    """Run several methods on the same episodes, as `run_episodes` does one.

    Args:
        methods: gives the query's mask by each method, by its name; the same names every time.
        dataset: holds the images.
        episodes: the list, not empty.
        done: called after each episode.

    Returns:
        The methods' runs by name. Each one's `seconds` is the time of all.

    Raises:
        InputError: an image or a mask is missing or unreadable, or their sizes differ.
    """
    began = time.monotonic()
    pixels = hashlib.sha256()
    counted: dict[str, list[Counts]] = {}
    absent = []
    for number, episode in enumerate(episodes):
        shots, query, truth = load_episode(dataset, episode)
        for array in (*(each for shot in shots for each in shot), query, truth):
            pixels.update(repr(array.shape).encode())
            pixels.update(np.ascontiguousarray(array).data)
        for name, mask in methods(shots, query).items():
            counted.setdefault(name, []).append(count_pixels(mask, truth))
        if not (truth == 1).any():
            absent.append(number)
        done()
    labels = tuple(episode.label for episode in episodes)
    listed, seen = fingerprint(dataset, episodes), pixels.hexdigest()
    seconds = time.monotonic() - began
    return {
        name: Run(
            name,
            dataset.classes,
            labels,
            np.array(counts),
            listed,
            seconds,
            seen,
            tuple(absent),
        )
        for name, counts in counted.items()
    }


def load_episode(dataset: Dataset, episode: ListedEpisode) -> tuple[Shots, UInt8, UInt8]:
    """Load the images and masks of an episode.

    As is common, ignored pixels are background in a support.

    Returns:
        The shots, the query (uint8 RGB [H, W, 3]) and its true mask (uint8 [H, W]: 0, 1, or 255
        for ignored pixels).

    Raises:
        InputError: an image or a mask is missing or unreadable, or their sizes differ.
    """
    marked = [_pair(dataset, key, episode.label) for key in episode.support]
    shots = [(image, (mask == 1).astype(np.uint8)) for image, mask in marked]
    return shots, *_checked(*dataset.query(episode), episode.query)


def _pair(dataset: Dataset, key: str, label: int) -> tuple[UInt8, UInt8]:
    return _checked(dataset.image(key), dataset.mask(key, label), key)


def _checked(image: UInt8, mask: UInt8, key: str) -> tuple[UInt8, UInt8]:
    if image.shape[:2] != mask.shape:
        raise InputError(f"image {key} is {image.shape[:2]}, its mask {mask.shape}")
    return image, mask
