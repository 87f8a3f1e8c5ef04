"""Data sets as evaluation and training see them: classes, their images, masks and episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.images import UInt8

Split = Literal["train", "test"]
"""Classes (or images) to learn from, or those held out."""

_ABSENT = 2  # the stream of random numbers that draws queries without the target


@dataclass(frozen=True)
class ListedEpisode:
    """An episode by its images' keys.

    Attributes:
        label: the class, an index into the data set's classes.
        support: K images that show the class.
        query: the image to segment; not among the support.
        absent: the query does not show the class: its true mask is empty.
    """

    label: int
    support: tuple[str, ...]
    query: str
    absent: bool = False


class Dataset(ABC):
    """Annotated images: one split, and one fold if the data set has folds.

    Attributes:
        name: the command line's name for the data set.
        classes: names of the split's classes; an index into them is a label.
    """

    name: str
    classes: tuple[str, ...]

    @abstractmethod
    def images(self, label: int) -> Sequence[str]:
        """Return the keys of the images that show a class, in a fixed order."""

    @abstractmethod
    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3].

        Raises:
            InputError: the image does not exist or cannot be read.
        """

    @abstractmethod
    def mask(self, key: str, label: int) -> UInt8:
        """Return a class's mask in an image, uint8 [H, W]: 0, 1, or `IGNORED`.

        Raises:
            InputError: the mask does not exist or cannot be read.
        """

    def query(self, episode: ListedEpisode) -> tuple[UInt8, UInt8]:
        """Return the image and the true mask of an episode's query.

        Raises:
            InputError: the image or the mask does not exist or cannot be read.
        """
        image = self.image(episode.query)
        if episode.absent:
            return image, np.zeros(image.shape[:2], np.uint8)
        return image, self.mask(episode.query, episode.label)

    def holds(self, key: str, label: int) -> bool:
        """Return whether an image is there and may show a class, without reading its pixels."""
        return key in self.images(label)

    def shown_labels(self) -> list[int]:
        """Return the labels of the classes that have images: all, except in parts of a data set."""
        return [label for label in range(len(self.classes)) if self.images(label)]

    def most_episodes(self, shots: int) -> int | None:
        """Return how many different episodes a small data set has; None for more than are asked."""
        return None

    def shows(self, key: str, label: int) -> bool:
        """Return whether an image of any class shows this class, as far as the data set knows."""
        return key in self.images(label)

    def absent(self, episode: ListedEpisode, seed: int, index: int) -> ListedEpisode:
        """Return an episode with another query: an image of another class, without the episode's.

        Args:
            episode: gives the class and the support.
            seed: selects the query, together with `index`.
            index: the episode's number in its list.

        Raises:
            InputError: every image shows the class.
        """
        rng = np.random.default_rng([seed, index, _ABSENT])
        for other in rng.permutation(self.shown_labels()).tolist():
            keys = self.images(other) if other != episode.label else ()
            for position in _distinct(rng, len(keys)):
                if not self.shows(keys[position], episode.label):
                    return replace(episode, query=keys[position], absent=True)
        raise InputError(
            f"every image of data set {self.name} shows {self.classes[episode.label]!r}",
            "episodes without the target need images of another class",
        )

    def episode(self, seed: int, index: int, shots: int) -> ListedEpisode:
        """Draw one episode of a seed's list; the same arguments give the same episode.

        Classes take turns, in the order of `label_in_turn`; classes without images are skipped.
        The images are distinct; the query shows the class, and each support shows both the class
        and something else, since it teaches nothing otherwise.

        Raises:
            InputError: the class has too few such images.
        """
        shown = self.shown_labels()
        if not shown:
            raise InputError(f"data set {self.name} has no image of any of its classes")
        label = shown[label_in_turn(len(shown), seed, index)]
        rng = np.random.default_rng([seed, *divmod(index, len(shown))])
        keys = self.images(label)
        query, support = "", list[str]()
        for position in _distinct(rng, len(keys)):
            mask = self.mask(keys[position], label)
            present, other = bool((mask == 1).any()), bool((mask != 1).any())
            if present and not query:
                query = keys[position]
            elif present and other:
                support.append(keys[position])
            if query and len(support) == shots:
                return ListedEpisode(label, tuple(support), query)
        raise InputError(
            f"class {self.classes[label]!r} has too few images for {shots} shots and a query",
            f"it has {len(keys)}, and a support needs both the object and something else",
        )


def label_in_turn(classes: int, seed: int, index: int) -> int:
    """Return the class of an episode; every `classes` consecutive episodes show each class once.

    The order within such a round is `numpy.random.default_rng([seed, round]).permutation`.
    """
    turn, position = divmod(index, classes)
    return int(np.random.default_rng([seed, turn]).permutation(classes)[position])


def _distinct(rng: np.random.Generator, count: int) -> Iterator[int]:
    """Yield range(count) in a random order, drawn lazily."""
    seen: set[int] = set()
    while len(seen) < count:
        index = int(rng.integers(count))
        if index not in seen:
            seen.add(index)
            yield index


def find_root(root: Path, nested: Sequence[str], needed: str, tree: str) -> Path:
    """Return the folder of a data set: the one given, or a usual one inside it.

    Args:
        root: the folder that the user named.
        nested: folders inside it where downloads often put the data.
        needed: a path that the data set's folder must hold.
        tree: the expected layout, for the error message.

    Raises:
        InputError: no candidate holds that path; the hint is the expected layout.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", f"expected: {tree}")
    for folder in (root, *(root / name for name in nested)):
        if (folder / needed).exists():
            return folder
    raise InputError(f"{root} has no {needed}", f"expected: {tree}")


def check_fold(fold: int | None, folds: int, name: str) -> int:
    """Return the fold.

    Raises:
        InputError: no fold is given, or the data set does not have it.
    """
    if fold is None or not 0 <= fold < folds:
        given = "needs a fold" if fold is None else f"has no fold {fold}"
        raise InputError(f"{name} {given}", f"give --fold 0 to {folds - 1}")
    return fold
