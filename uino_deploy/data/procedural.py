"""The demo's drawn scenes as a data set: glyphs and handwritten digits, nothing to download."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode, label_in_turn
from uino_deploy.data.episodes import Episode, draw_episode
from uino_deploy.data.pools import PoolName, load_pool
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8

ROUNDS = 32
"""Scenes of each class that `Procedural.images` lists."""

_KEY = re.compile(r"(\d{1,18})/(\d{1,18})/(\d{1,4})")


class Procedural(Dataset):
    """A pool's scenes; the key `SEED/INDEX/NUMBER` is scene NUMBER of `draw_episode`'s INDEX.

    The scenes of an episode show one class and do not depend on the number of shots; the query
    is the scene after the last shot.

    Args:
        name: the data set's command-line name.
        pool: the classes.
        seed: the seed of the scenes that `images` lists.
    """

    def __init__(self, name: str, pool: PoolName, seed: int = 0) -> None:
        self.name = name
        self.classes = load_pool(pool).labels
        self._pool = pool
        self._seed = seed

    def images(self, label: int) -> list[str]:
        """Return the keys of scenes that show a class, one from each round."""
        count = len(self.classes)
        indices = range(ROUNDS * count)
        return [
            f"{self._seed}/{index}/0"
            for index in indices
            if label_in_turn(count, self._seed, index) == label
        ]

    def image(self, key: str) -> UInt8:
        """Return a scene, uint8 RGB [S, S, 3]."""
        return self._drawn(key).query.image

    def mask(self, key: str, label: int) -> UInt8:
        """Return the mask of a class in a scene that shows it, uint8 [S, S] of 0 and 1."""
        drawn = self._drawn(key)
        if drawn.label != label:
            raise InputError(f"scene {key} shows {self.classes[drawn.label]!r}, another class")
        return drawn.query.mask

    def holds(self, key: str, label: int) -> bool:
        """Return whether a key is that of a scene of the class; any seed can be drawn."""
        numbers = _KEY.fullmatch(key)
        if numbers is None:
            return False
        seed, index, _ = map(int, numbers.groups())
        return label_in_turn(len(self.classes), seed, index) == label

    def shown_labels(self) -> list[int]:
        """Return all labels: every class can be drawn."""
        return list(range(len(self.classes)))

    def episode(self, seed: int, index: int, shots: int) -> ListedEpisode:
        """Return the keys of the scenes of `draw_episode(pool, seed, index, shots)`."""
        keys = [f"{seed}/{index}/{number}" for number in range(shots + 1)]
        label = label_in_turn(len(self.classes), seed, index)
        return ListedEpisode(label, tuple(keys[:-1]), keys[-1])

    def shows(self, key: str, label: int) -> bool:
        """Return whether a scene shows a class, as its target or as a distractor."""
        return label in self._drawn(key).query.labels

    def absent(self, episode: ListedEpisode, seed: int, index: int) -> ListedEpisode:
        """Return an episode whose query is a scene of the seed's list without the class."""
        rng = np.random.default_rng([seed, index])
        while True:
            query = f"{seed}/{rng.integers(ROUNDS * len(self.classes))}/0"
            if not self.shows(query, episode.label):
                return replace(episode, query=query, absent=True)

    def _drawn(self, key: str) -> Episode:
        """Return an episode whose query is the scene; the scenes before it are its supports."""
        numbers = _KEY.fullmatch(key)
        if numbers is None:
            raise InputError(
                f"{key!r} is not a scene of {self.name}", "a scene is SEED/INDEX/NUMBER"
            )
        seed, index, number = map(int, numbers.groups())
        return _draw(self._pool, seed, index, number)


@lru_cache(maxsize=8)  # an image's mask is usually read right after it
def _draw(pool: PoolName, seed: int, index: int, number: int) -> Episode:
    return draw_episode(load_pool(pool), seed, index, shots=number)
