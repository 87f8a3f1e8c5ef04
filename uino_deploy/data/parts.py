"""Parts of a data set: what a training learns from, and what judges it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uino_deploy.data.dataset import Dataset
from uino_deploy.images import UInt8

SHARE = 5
"""One in so many classes, or images of each class, is held out."""

ENOUGH_CLASSES = 10
"""From so many classes on, whole classes are held out rather than images."""


class Part(Dataset):
    """Some of a data set's images; classes, labels and keys are those of the whole.

    Args:
        whole: the data set.
        keys: the images of each class, by its label; none for a class that the part leaves out.
    """

    def __init__(self, whole: Dataset, keys: Sequence[Sequence[str]]) -> None:
        self.name, self.classes = whole.name, whole.classes
        self._whole = whole
        self._keys = keys

    def images(self, label: int) -> Sequence[str]:
        """Return the keys of the part's images of a class."""
        return self._keys[label]

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3]."""
        return self._whole.image(key)

    def mask(self, key: str, label: int) -> UInt8:
        """Return a class's mask in an image, uint8 [H, W]: 0, 1, or `IGNORED`."""
        return self._whole.mask(key, label)

    def shows(self, key: str, label: int) -> bool:
        """Return whether an image shows a class, as far as the whole data set knows."""
        return self._whole.shows(key, label)


class Halves(NamedTuple):
    """A data set in two parts without a common image of any class.

    Attributes:
        learnt: what a training learns from.
        held_out: what judges it.
        words: what is held out, for people.
    """

    learnt: Part
    held_out: Part
    words: str


def hold_out(dataset: Dataset, shots: int) -> Halves | None:
    """Hold out every fifth class if there are ten or more, else every fifth image of each class.

    An image of several classes is held out of all of them.

    Args:
        dataset: its `images` list all that it has.
        shots: support images per episode; each part of a class keeps one more.

    Returns:
        The parts; None if a class has too few images for both.
    """
    keys = [list(dataset.images(label)) for label in range(len(dataset.classes))]
    shown = dataset.shown_labels()
    if len(shown) >= ENOUGH_CLASSES:
        chosen = set(shown[::SHARE])
        learnt = [[] if label in chosen else each for label, each in enumerate(keys)]
        held_out = [each if label in chosen else [] for label, each in enumerate(keys)]
        words = f"{len(chosen)} of {len(shown)} classes"
        return Halves(Part(dataset, learnt), Part(dataset, held_out), words)
    kept_back = {key for each in keys for key in each[::SHARE]}
    learnt = [[key for key in each if key not in kept_back] for each in keys]
    held_out = [[key for key in each if key in kept_back] for each in keys]
    if any(len(part[label]) <= shots for part in (learnt, held_out) for label in shown):
        return None
    words = f"{len(kept_back)} of {len({key for each in keys for key in each})} images"
    return Halves(Part(dataset, learnt), Part(dataset, held_out), words)
