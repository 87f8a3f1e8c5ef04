"""What an evaluation or a training asks of a data set: classes, their images, images, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.images import UInt8

IGNORED = 255
"""Value of the pixels of a mask that neither count for nor against a prediction."""

Split = Literal["train", "test"]
"""Classes (or images) to learn from, or those held out."""


class Dataset(Protocol):
    """Images in which classes are marked; one split, and one fold where there are folds."""

    @property
    def name(self) -> str:
        """What the command line calls the data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the split's classes; an index into them is a label."""

    def images(self, label: int) -> Sequence[str]:
        """Return the keys of the images that show a class, in a fixed order."""

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3].

        Raises:
            InputError: there is no such image, or it cannot be read.
        """

    def mask(self, key: str, label: int) -> UInt8:
        """Return where a class is in an image, uint8 [H, W]: 0, 1, or `IGNORED`.

        Raises:
            InputError: there is no such mask, or it cannot be read.
        """


@dataclass(frozen=True)
class ListedEpisode:
    """An episode by its images' keys.

    Attributes:
        label: the class, an index into the data set's classes.
        support: the K images that show the class.
        query: the image to find it in, none of the support.
    """

    label: int
    support: tuple[str, ...]
    query: str


def label_in_turn(classes: int, seed: int, index: int) -> int:
    """Return the class of an episode: every `classes` consecutive ones show each class once.

    The order within such a round is `numpy.random.default_rng([seed, round]).permutation`.
    """
    turn, position = divmod(index, classes)
    return int(np.random.default_rng([seed, turn]).permutation(classes)[position])


def find_root(root: Path, nested: Sequence[str], needed: str, tree: str) -> Path:
    """Return the folder that a data set lies in: the one given, or a usual one inside it.

    Args:
        root: what the user named.
        nested: folders inside it where downloads often put the data.
        needed: a path that the data set's folder must hold.
        tree: the expected layout, for people.

    Raises:
        InputError: no candidate holds what is needed; the hint is the expected layout.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", f"expected: {tree}")
    for folder in (root, *(root / name for name in nested)):
        if (folder / needed).exists():
            return folder
    raise InputError(f"{root} holds no {needed}", f"expected: {tree}")


def check_fold(fold: int | None, folds: int, name: str) -> int:
    """Return the fold.

    Raises:
        InputError: none was given, or one that the data set does not have.
    """
    if fold is None or not 0 <= fold < folds:
        given = "needs a fold" if fold is None else f"has no fold {fold}"
        raise InputError(f"{name} {given}", f"give --fold 0 to {folds - 1}")
    return fold
