"""Scenes with several copies of one thing, some of them overlapping, and the mask of each copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.montages import MONTAGE_SIZE, Variation, compose_montage
from uino_deploy.data.thing_episodes import ThingScene, sample_episode
from uino_deploy.data.things import UNSEEN_HAND, Things, ThingSplit

_COPIES = (1, 7)  # copies in a scene, both included
_DISTRACTORS = (0, 2)
# Smaller than in other scenes, so that there is room for several; they cover each other a little.
_VARIATION = Variation(sizes=(0.2, 0.4), visible=0.85)
_SPLIT: ThingSplit = "held-out"


@dataclass(frozen=True, eq=False)
class CountingEpisode:
    """A held-out concept in one support scene, and a scene with several copies of it.

    Attributes:
        name: the concept's.
        support: a scene that shows it once, by a known hand.
        image: RGB, uint8 [S, S, 3], by the unseen hand.
        copies: bool [C, S, S], what is visible of each copy; disjoint, C at least 1.
    """

    name: str
    support: ThingScene
    image: NDArray[np.uint8]
    copies: NDArray[np.bool_]


def draw_copies(seed: int, index: int) -> CountingEpisode:
    """Draw one episode; the same arguments give the same pixels.

    Args:
        seed: the sequence of episodes.
        index: position within the sequence.
    """
    things = Things.load()
    rng = np.random.default_rng([seed, index])
    episode = sample_episode(rng, _SPLIT, query_hand=UNSEEN_HAND)
    copies, distractors = (int(rng.integers(*n, endpoint=True)) for n in (_COPIES, _DISTRACTORS))
    candidates = things.others(UNSEEN_HAND, episode.concept, _SPLIT)
    others = rng.choice(candidates, distractors, replace=False).tolist()
    photographs = things.grounds(_SPLIT)
    tiles = [things.tiles[UNSEEN_HAND][each] for each in [episode.concept] * copies + others]
    ground = photographs[int(rng.integers(len(photographs)))]
    montage = compose_montage(tiles, ground, rng, MONTAGE_SIZE, copies, _VARIATION)
    mine = np.array(montage.placed) < copies
    return CountingEpisode(episode.name, episode.support[0], montage.image, montage.masks[mine])
