"""Lists of episodes, drawn from a seed or read from a file that other projects can share.

The file is JSON lines. The first line describes the list; each of the others is an episode:

    {"format": "uino-episodes", "version": 1, "dataset": "pascal", "fold": 0, "shots": 1, "seed": 0}
    {"class": "bird", "support": ["JPEGImages/2007_000042.jpg"], "query": "JPEGImages/..."}

Images are named by their paths inside the data set. An episode whose query does not show the class
also has `"absent": true`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file
from uino_deploy.inputs import json_text, read_regular

FORMAT = "uino-episodes"
VERSION = 1

T = TypeVar("T")

_ABSENT = 3  # the stream of random numbers that chooses episodes without the target

MAX_BYTES = 1 << 30
"""Bytes of the largest list that is read."""


class Header(msgspec.Struct, frozen=True):
    """The first line of a list.

    Attributes:
        format: `FORMAT`.
        version: the format's version.
        dataset: the command line's name for the data set.
        fold: the data set's fold, or None if it has none.
        shots: support images per episode.
        seed: the seed that the list was drawn from; None if it was not drawn.
    """

    format: str
    version: int
    dataset: str
    fold: int | None
    shots: int
    seed: int | None


class _Line(msgspec.Struct, omit_defaults=True):
    class_: str = msgspec.field(name="class")
    support: list[str]
    query: str
    absent: bool = False


def draw_list(
    dataset: Dataset, episodes: int, shots: int, seed: int, absent: float = 0.0
) -> list[ListedEpisode]:
    """Draw episodes as `Dataset.episode` does; the same arguments give the same list.

    Args:
        dataset: the images.
        episodes: their number.
        shots: support images per episode.
        seed: selects the episodes.
        absent: the share whose query does not show the class; the others do not depend on it.

    Raises:
        InputError: a class has too few images, or every image shows it.
    """
    listed = [dataset.episode(seed, index, shots) for index in range(episodes)]
    chances = np.random.default_rng([seed, _ABSENT]).random(episodes)
    return [
        dataset.absent(episode, seed, index) if chance < absent else episode
        for index, (episode, chance) in enumerate(zip(listed, chances, strict=True))
    ]


def write_list(
    path: Path,
    dataset: Dataset,
    fold: int | None,
    shots: int,
    seed: int | None,
    episodes: Sequence[ListedEpisode],
    force: bool = False,
) -> None:
    """Write a list, whole or not at all.

    Raises:
        OutputExists: the file exists and `force` is not given.
    """
    with atomic_file(path, force) as temporary:
        temporary.write_bytes(_encode(dataset, fold, shots, seed, episodes))


def read_list(path: Path, dataset: Dataset) -> tuple[Header, list[ListedEpisode]]:
    """Read a list for a data set.

    Raises:
        InputError: the file is unreadable, has another format, is for another data set, lists no
            episode, names a class or an image that the split does not have, or has an episode with
            another number of shots.
    """
    lines = _lines(path)
    header = _decoded(path, *lines[0], Header)
    if (header.format, header.version) != (FORMAT, VERSION):
        raise InputError(f"{path} has format {header.format!r} {header.version}, not {VERSION}")
    if header.dataset != dataset.name:
        raise InputError(f"{path} is for data set {header.dataset!r}, not {dataset.name!r}")
    labels = {name: label for label, name in enumerate(dataset.classes)}
    episodes = []
    for number, line in lines[1:]:
        each = _decoded(path, number, line, _Line)
        episodes.append(each)
        if each.class_ not in labels:
            raise InputError(
                f"{path}, line {number}: the data set has no class {each.class_!r}",
                "is the list for another fold or split?",
            )
        if len(each.support) != header.shots:
            raise InputError(
                f"{path}, line {number}: the number of support images is not {header.shots}"
            )
        gone = [k for k in _shown(each) if not dataset.holds(k, labels[each.class_])]
        if gone:
            raise InputError(
                f"{path}, line {number}: the data set has no image {gone[0]} of {each.class_!r}",
                "is the list for another version of the data?",
            )
    return header, [
        ListedEpisode(labels[each.class_], tuple(each.support), each.query, each.absent)
        for each in episodes
    ]


def _shown(line: _Line) -> list[str]:
    """Return the images that should show the class."""
    return line.support if line.absent else [*line.support, line.query]


def fingerprint(dataset: Dataset, episodes: Sequence[ListedEpisode]) -> str:
    """Return a SHA-256 that is equal for two lists of the same episodes of a data set."""
    shots = len(episodes[0].support) if episodes else 0
    return hashlib.sha256(_encode(dataset, None, shots, None, episodes)).hexdigest()


def _encode(
    dataset: Dataset,
    fold: int | None,
    shots: int,
    seed: int | None,
    episodes: Sequence[ListedEpisode],
) -> bytes:
    lines: list[Header | _Line] = [Header(FORMAT, VERSION, dataset.name, fold, shots, seed)]
    lines += [
        _Line(
            class_=dataset.classes[each.label],
            support=list(each.support),
            query=each.query,
            absent=each.absent,
        )
        for each in episodes
    ]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _decoded(path: Path, number: int, line: bytes, kind: type[T]) -> T:
    try:
        return decode_json(line, kind)
    except DocumentError as error:
        raise InputError(f"{path}, line {number}, is not an episode list's: {error}") from error


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines that are not blank, with their numbers from 1."""
    try:
        data = json_text(read_regular(path, "episodes", MAX_BYTES))
        lines = [each for each in enumerate(data.splitlines(), 1) if each[1].strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not an episode list: {error}") from error
    except OSError as error:
        raise InputError(f"episode list {path} cannot be read: {error.strerror}") from error
    if len(lines) < 2:
        raise InputError(f"{path} lists no episode")
    return lines
