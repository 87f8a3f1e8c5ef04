"""Episodes of things: what is asked of a model, and scenes from which its encoder learns.

Example:
    rng = np.random.default_rng(0)
    episode = sample_episode(rng, split="held-out", query_hand="fluent", shots=1)
    episode.name, episode.support[0].image, episode.query.mask, episode.present
    episode.query.masks, episode.query.concepts         # a concept's number for every mask
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uino_deploy.data.montages import MONTAGE_SIZE, PLAIN, VARIED, Montage, compose_montage
from uino_deploy.data.styles import restyle
from uino_deploy.data.things import KNOWN_HANDS, Hand, Things, ThingSplit

_THINGS = (2, 5)  # in a scene, both included


@dataclass(frozen=True, eq=False)
class ThingScene:
    """A montage of things of one split, drawn by one hand.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        masks: bool [G, S, S], what is visible of each thing; disjoint, none empty.
        concepts: of every mask, a number of `Things.names`.
        target: the concept asked for; it may be absent.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    concepts: tuple[int, ...]
    target: int

    @property
    def mask(self) -> NDArray[np.uint8]:
        """What is visible of the target, uint8 [S, S] of 0 and 1."""
        shown = np.array(self.concepts) == self.target
        mask: NDArray[np.bool_] = self.masks[shown].any(axis=0)
        return mask.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class ThingEpisode:
    """A concept shown in K support scenes by one hand, and a query scene by another.

    Attributes:
        concept: its number.
        name: its name.
        support: K scenes that show it.
        query: a scene that shows it, unless it is absent.
        present: whether the query shows it.
    """

    concept: int
    name: str
    support: tuple[ThingScene, ...]
    query: ThingScene
    present: bool


def sample_episode(
    rng: np.random.Generator,
    split: ThingSplit = "base",
    query_hand: Hand | None = None,
    shots: int = 1,
    absent: float = 0.0,
    concept: int | None = None,
    size: int = MONTAGE_SIZE,
    varied: bool = False,
) -> ThingEpisode:
    """Draw an episode.

    The support is drawn by a known hand, the query by another; both have drawn the target.
    Every scene has 2 to 5 things, one of which shares the target's colours (`Things.colour_twins`)
    and its light. No distractor is a near-duplicate of the target, and all are of its split, as are
    the photographs; no two scenes of an episode are on the same photograph while there are enough.

    Args:
        rng: the only source of randomness.
        split: of concepts and photographs.
        query_hand: who draws the query and knows the split; None for another known hand.
        shots: support scenes K; none is enough for a scene alone.
        absent: the share of episodes whose query does not show the target.
        concept: the target's number; None for any of the split.
        size: the scenes' side S in pixels.
        varied: whether scenes differ as training wants them to, not as the tests' do.
    """
    things = Things.load()
    if concept is None:
        concept = int(rng.choice(things.concepts(split)))
    drawn = things.hands(concept, KNOWN_HANDS)
    if query_hand is None:
        support_hand, query_hand = (
            drawn[index] for index in rng.permutation(len(drawn))[:2].tolist()
        )
    else:
        others = [hand for hand in drawn if hand != query_hand]
        support_hand = others[int(rng.integers(len(others)))]
    present = bool(rng.uniform() >= absent)
    grounds = things.grounds(split)
    turns = rng.permutation(len(grounds)).tolist()
    scenes = [
        _scene(
            rng,
            split,
            concept,
            query_hand if number == shots else support_hand,
            grounds[turns[number % len(grounds)]],
            size,
            varied,
            present or number < shots,
        )
        for number in range(shots + 1)
    ]
    return ThingEpisode(concept, things.names[concept], tuple(scenes[:-1]), scenes[-1], present)


def _scene(
    rng: np.random.Generator,
    split: ThingSplit,
    target: int,
    hand: Hand,
    photograph: Image.Image,
    size: int,
    varied: bool,
    present: bool = True,
) -> ThingScene:
    things = Things.load()
    count = int(rng.integers(_THINGS[0], _THINGS[1], endpoint=True))
    twin = int(rng.choice(things.colour_twins(hand, target, split)))
    asked = [target, twin] if present else [twin]
    others = things.others(hand, target, split)
    more = rng.choice(others[others != twin], size=count - len(asked), replace=False)
    concepts = [*asked, *more.tolist()]
    tiles = [things.tiles[hand][concept] for concept in concepts]
    if varied:
        tiles = [restyle(tile, rng) for tile in tiles]
    montage: Montage = compose_montage(
        tiles, photograph, rng, size, alike=len(asked), variation=VARIED if varied else PLAIN
    )
    placed = tuple(concepts[index] for index in montage.placed)
    return ThingScene(montage.image, montage.masks, placed, target)
