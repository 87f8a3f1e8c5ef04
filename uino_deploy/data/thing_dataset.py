"""Held-out things as data sets, one for each row of the protocol; nothing to download.

- things: the support by one of the known hands, the query by the other.
- things-unseen-hand: the query by a hand that no training sees.
- things-absent: likewise, but half of the queries do not show the target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode, label_in_turn
from uino_deploy.data.thing_episodes import ThingEpisode, ThingScene, sample_episode
from uino_deploy.data.things import UNSEEN_HAND, Hand, Things, ThingSplit
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8

_KEY = re.compile(r"(\d{1,18})/(\d{1,18})/(\d{1,3})/(\d{1,3})")


@dataclass(frozen=True)
class Row:
    """What a data set asks.

    Attributes:
        query_hand: who draws the query; None for another known hand than the support's.
        absent: the share of queries that do not show the target.
    """

    query_hand: Hand | None = None
    absent: float = 0.0


ROWS = {
    "things": Row(),
    "things-unseen-hand": Row(UNSEEN_HAND),
    "things-absent": Row(UNSEEN_HAND, absent=0.5),
}


class ThingDataset(Dataset):
    """A row's episodes; the key `SEED/INDEX/SHOTS/NUMBER` is a scene of one.

    The query comes after the shots, and after it the same episode's query without the target.

    Args:
        name: one of `ROWS`.
        split: of concepts and photographs.
    """

    def __init__(self, name: str, split: ThingSplit = "held-out") -> None:
        things = Things.load()
        self.name = name
        self._row = ROWS[name]
        self._split = split
        self._concepts: list[int] = things.concepts(split).tolist()
        self.classes = tuple(things.names[concept] for concept in self._concepts)

    def images(self, label: int) -> list[str]:
        """Return the keys of some scenes that show a class: the supports of seed 0, 32 rounds."""
        count = len(self.classes)
        turns = (index for index in range(32 * count) if label_in_turn(count, 0, index) == label)
        return [f"0/{index}/1/0" for index in turns]

    def image(self, key: str) -> UInt8:
        """Return a scene, uint8 RGB [S, S, 3]."""
        return self._scene(key)[1].image

    def mask(self, key: str, label: int) -> UInt8:
        """Return the mask of a scene's target, uint8 [S, S] of 0 and 1: all 0 if it is absent."""
        episode, scene = self._scene(key)
        if episode.concept != self._concepts[label]:
            raise InputError(f"scene {key} asks for {episode.name!r}, another class")
        return scene.mask

    def holds(self, key: str, label: int) -> bool:
        """Return whether a key is that of a scene of the class; any seed can be drawn."""
        numbers = _numbers(key)
        return numbers is not None and self._label(*numbers[:2]) == label

    def shown_labels(self) -> list[int]:
        """Return all labels: every class can be drawn."""
        return list(range(len(self.classes)))

    def episode(self, seed: int, index: int, shots: int) -> ListedEpisode:
        """Return the keys of an episode's scenes."""
        keys = [f"{seed}/{index}/{shots}/{number}" for number in range(shots + 1)]
        return ListedEpisode(self._label(seed, index), tuple(keys[:-1]), keys[-1])

    def _label(self, seed: int, index: int) -> int:
        return label_in_turn(len(self.classes), seed, index)

    def absent(self, episode: ListedEpisode, seed: int, index: int) -> ListedEpisode:
        """Return an episode whose query is drawn without the target."""
        shots = len(episode.support)
        return replace(episode, query=f"{seed}/{index}/{shots}/{shots + 1}", absent=True)

    def _scene(self, key: str) -> tuple[ThingEpisode, ThingScene]:
        numbers = _numbers(key)
        if numbers is None:
            raise InputError(
                f"{key!r} is not a scene of {self.name}",
                "a scene is SEED/INDEX/SHOTS/NUMBER, its number at most SHOTS + 1",
            )
        seed, index, shots, number = numbers
        concept = self._concepts[self._label(seed, index)]
        row = replace(self._row, absent=1.0) if number == shots + 1 else self._row
        episode = _drawn(row, self._split, concept, seed, index, shots)
        return episode, (*episode.support, episode.query)[min(number, shots)]


def _numbers(key: str) -> tuple[int, int, int, int] | None:
    """Return a key's seed, index, shots and number; None if it is no key."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    seed, index, shots, number = map(int, found.groups())
    return None if number > shots + 1 else (seed, index, shots, number)


@lru_cache(maxsize=4)  # an episode's images and masks are read one after the other
def _drawn(
    row: Row, split: ThingSplit, concept: int, seed: int, index: int, shots: int
) -> ThingEpisode:
    return sample_episode(
        np.random.default_rng([seed, index]),
        split,
        query_hand=row.query_hand,
        shots=shots,
        absent=row.absent,
        concept=concept,
    )
