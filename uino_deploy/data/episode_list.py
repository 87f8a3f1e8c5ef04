"""Lists of episodes: drawn from a seed, written to and read from a file for other projects.

The file is JSON lines. The first line says what the list is; each of the others is an episode:

    {"format": "uino-episodes", "version": 1, "dataset": "pascal", "fold": 0, "shots": 1, "seed": 0}
    {"class": "bird", "support": ["JPEGImages/2007_000042.jpg"], "query": "JPEGImages/..."}

Images are named by their paths inside the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode, label_in_turn
from uino_deploy.data.procedural import Procedural
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file

FORMAT = "uino-episodes"
VERSION = 1


class Header(msgspec.Struct, frozen=True):
    """What a list is.

    Attributes:
        format: `FORMAT`.
        version: of the format.
        dataset: what the command line calls the data set.
        fold: of the data set, where it has folds.
        shots: support images of each episode.
        seed: that the list was drawn from; None where it was not.
    """

    format: str
    version: int
    dataset: str
    fold: int | None
    shots: int
    seed: int | None


class _Line(msgspec.Struct):
    class_: str = msgspec.field(name="class")
    support: list[str]
    query: str


def draw_list(dataset: Dataset, episodes: int, shots: int, seed: int) -> list[ListedEpisode]:
    """Draw episodes; the same arguments give the same list.

    Classes come in rounds, as `label_in_turn` says; those without any image are left out. An
    episode's images are distinct; its query shows the class, and its supports show both the class
    and something else, without which there would be nothing to learn.

    Raises:
        InputError: a class has too few such images.
    """
    return [draw_listed(dataset, seed, index, shots) for index in range(episodes)]


def draw_listed(dataset: Dataset, seed: int, index: int, shots: int) -> ListedEpisode:
    """Draw one episode of the list of a seed; see `draw_list`."""
    if isinstance(dataset, Procedural):
        return dataset.episode(seed, index, shots)
    shown = shown_labels(dataset)
    if not shown:
        raise InputError(f"data set {dataset.name} has no image of any of its classes")
    label = shown[label_in_turn(len(shown), seed, index)]
    rng = np.random.default_rng([seed, *divmod(index, len(shown))])
    keys = dataset.images(label)
    query, support = "", list[str]()
    for position in _distinct(rng, len(keys)):
        present, other = _shown(dataset, keys[position], label)
        if present and not query:
            query = keys[position]
        elif present and other:
            support.append(keys[position])
        if query and len(support) == shots:
            return ListedEpisode(label, tuple(support), query)
    raise InputError(
        f"class {dataset.classes[label]!r} has too few images for {shots} shots and a query",
        f"it has {len(keys)}, and a support needs both the object and something else",
    )


def shown_labels(dataset: Dataset) -> list[int]:
    """Return the labels of the classes that have images: all, but for parts of a data set."""
    labels = range(len(dataset.classes))
    if isinstance(dataset, Procedural):
        return list(labels)
    return [label for label in labels if dataset.images(label)]


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
        OutputExists: the file is there and `force` is not given.
    """
    with atomic_file(path, force) as temporary:
        temporary.write_bytes(_encode(dataset, fold, shots, seed, episodes))


def read_list(path: Path, dataset: Dataset) -> tuple[Header, list[ListedEpisode]]:
    """Read a list for a data set.

    Raises:
        InputError: the file is unreadable, of another format or data set, holds no episode, names a
            class that the split does not have, or an episode with another number of shots.
    """
    lines = _lines(path)
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        episodes = [msgspec.json.decode(line, type=_Line) for line in lines[1:]]
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no list of episodes: {error}") from error
    if (header.format, header.version) != (FORMAT, VERSION):
        raise InputError(f"{path} has format {header.format!r} {header.version}, not {VERSION}")
    if header.dataset != dataset.name:
        raise InputError(f"{path} lists episodes of {header.dataset!r}, not of {dataset.name!r}")
    labels = {name: label for label, name in enumerate(dataset.classes)}
    for number, each in enumerate(episodes, 2):
        if each.class_ not in labels:
            raise InputError(
                f"{path}, line {number}: the data set has no class {each.class_!r}",
                "is it the list of another fold or split?",
            )
        if len(each.support) != header.shots:
            raise InputError(f"{path}, line {number}: not {header.shots} support images")
    return header, [ListedEpisode(labels[e.class_], tuple(e.support), e.query) for e in episodes]


def fingerprint(dataset: Dataset, episodes: Sequence[ListedEpisode]) -> str:
    """Return a SHA-256 that two lists share when they are the same episodes of one data set."""
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
        _Line(class_=dataset.classes[each.label], support=list(each.support), query=each.query)
        for each in episodes
    ]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"episodes {path} cannot be read: {error.strerror}") from error
    if len(lines) < 2:
        raise InputError(f"{path} holds no episode")
    return lines


def _distinct(rng: np.random.Generator, count: int) -> Iterator[int]:
    """Yield all of range(count) in a random order, drawn as far as it is asked for."""
    seen: set[int] = set()
    while len(seen) < count:
        index = int(rng.integers(count))
        if index not in seen:
            seen.add(index)
            yield index


def _shown(dataset: Dataset, key: str, label: int) -> tuple[bool, bool]:
    """Return whether an image shows the class, and whether it shows anything else."""
    mask = dataset.mask(key, label)
    return bool((mask == 1).any()), bool((mask != 1).any())
