"""The work that every runner does: the same photographs, masks and episodes, from one folder.

Photographs are files in their original compression, so that decoding is part of the time. Real
masks are neither available nor needed: accuracy is the distance from PyTorch on the same input, so
a class is an ellipse marked in another photograph.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from uino_deploy.benchmarks.record import Case
from uino_deploy.data.photographs import ellipse, shipped_photographs
from uino_deploy.errors import DependencyError, InputError
from uino_deploy.images import load_image

UInt8 = npt.NDArray[np.uint8]
Shot = tuple[UInt8, UInt8]

FILE = "work.json"
_MOST_PHOTOGRAPHS = 4


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The work that `prepare` wrote.

    Attributes:
        photographs: file names in the folder.
        images: SHA-256 of each photograph's pixels.
        cases: the shapes of work.
        episodes: held-out episodes to segment for accuracy.
    """

    photographs: list[str]
    images: list[str]
    cases: list[Case]
    episodes: int

    def queries(self, folder: Path, case: Case, first: int = 0) -> list[Path]:
        """Return a batch of queries, cycling through the photographs from the `first`."""
        count = len(self.photographs)
        return [folder / self.photographs[(first + i) % count] for i in range(case.batch)]

    def shots(self, folder: Path, number: int, shots: int) -> list[Shot]:
        """Return the shots of class `number`, whose first is not the first query."""
        count = len(self.photographs)
        made = []
        for shot in range(shots):
            name = self.photographs[(number + shot + 1) % count]
            image = load_image(folder / name)
            height, width = image.shape[:2]
            made.append((image, ellipse(height, width, number + 7 * shot)))
        return made


def prepare(folder: Path, images: Path | None, cases: Sequence[Case], episodes: int) -> Work:
    """Copy the photographs into a folder and write the description of the work.

    Args:
        folder: empty.
        images: a folder of photographs, of which the first four are used; those that scikit-learn
            and scikit-image ship if None.
        cases: the shapes of work.
        episodes: held-out episodes.

    Raises:
        InputError: the folder contains no image, or an unreadable one.
        DependencyError: no photograph is available.
    """
    photographs = find_photographs(images)
    names, hashes = [], []
    for number, path in enumerate(photographs):
        name = f"{number}{path.suffix.lower()}"
        shutil.copyfile(path, folder / name)
        pixels = load_image(folder / name)
        names.append(name)
        hashes.append(hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())
    work = Work(photographs=names, images=hashes, cases=list(cases), episodes=episodes)
    (folder / FILE).write_bytes(msgspec.json.encode(work))
    return work


def read(folder: Path) -> Work:
    """Read the work that `prepare` wrote."""
    return msgspec.json.decode((folder / FILE).read_bytes(), type=Work)


def find_photographs(images: Path | None) -> list[Path]:
    """Return the photographs of a folder, or without one those of installed packages.

    Raises:
        InputError: the folder contains no image.
        DependencyError: no photograph is available.
    """
    if images is not None:
        from uino_deploy.runtime.batch import find_images

        if not images.is_dir():
            raise InputError(f"{images} is not a folder", "give a folder of photographs")
        return find_images([str(images)])[:_MOST_PHOTOGRAPHS]
    photographs = shipped_photographs()
    if not photographs:
        raise DependencyError(
            "no photograph to measure on: neither scikit-learn nor scikit-image is installed",
            "give a folder of images with --images, or pip install scikit-learn",
        )
    return photographs[:_MOST_PHOTOGRAPHS]
