"""The atlas of things: concepts drawn by four hands, photographs, and how both are split.

A concept is a thing with a name, such as "hot dog"; a hand is a set of pictures by one maker.
Held-out concepts and the photographs behind them are never trained on, and near-duplicates of a
concept (its group: all balls, all dogs) are on its side of the split. Extra concepts (faces,
people, hands, flags, symbols) are for training only. `things_notice.txt` tells the licences;
`tools/make_things.py` builds the file and states the rules.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uino_deploy.images.colours import blurred, colour_cells

ThingSplit = Literal["base", "held-out", "extra", "training"]
"""Every concept is of the first, second or third; training draws from base and extra."""
Hand = Literal["noto", "twemoji", "fluent", "emojione"]

HANDS: tuple[Hand, ...] = get_args(Hand)
KNOWN_HANDS: tuple[Hand, ...] = ("noto", "twemoji", "emojione")
"""The hands that training sees; EmojiOne lacks many concepts, all held-out ones among them."""
UNSEEN_HAND: Hand = "fluent"

_LEVELS = 8  # of each colour in a histogram
_TWINS = 8


@dataclass(frozen=True, eq=False)
class Things:
    """The decoded atlas; about 70 MB.

    Attributes:
        names: of every concept; an index into them is a concept's number.
        groups: int64 [C], equal for near-duplicates.
        families: int64 [C], equal for things of one kind, such as all birds: Unicode's subcategory.
        splits: of every concept.
        tiles: hand -> number -> the concept's picture, RGBA, all of one size; a hand may lack some.
        photographs: split -> RGB images.
    """

    names: tuple[str, ...]
    groups: NDArray[np.int64]
    families: NDArray[np.int64]
    splits: tuple[ThingSplit, ...]
    tiles: dict[Hand, dict[int, Image.Image]]
    photographs: dict[ThingSplit, dict[str, Image.Image]]

    @staticmethod
    @cache
    def load() -> Things:
        """Decode the atlas, once for a process: a tenth of a second."""
        with zipfile.ZipFile(io.BytesIO(_atlas())) as atlas:
            index = json.loads(atlas.read("index.json"))
            concepts = index["concepts"]
            side, columns = index["side"], index["columns"]
            tiles: dict[Hand, dict[int, Image.Image]] = {hand: {} for hand in HANDS}
            for name, sheet in index["sheets"].items():
                image = _image(atlas, f"{name}.webp", "RGBA")
                for place, number in enumerate(sheet["concepts"]):
                    x, y = place % columns * side, place // columns * side
                    tiles[sheet["hand"]][number] = image.crop((x, y, x + side, y + side))
            photographs: dict[ThingSplit, dict[str, Image.Image]] = {"base": {}, "held-out": {}}
            for name, split in index["photographs"].items():
                photographs[split][name] = _image(atlas, f"photographs/{name}.webp", "RGB")
        return Things(
            tuple(concept["name"] for concept in concepts),
            np.array([concept["group"] for concept in concepts]),
            np.unique([concept["family"] for concept in concepts], return_inverse=True)[1],
            tuple(concept["split"] for concept in concepts),
            tiles,
            photographs,
        )

    @cache  # noqa: B019 # there is one atlas
    def concepts(self, split: ThingSplit) -> NDArray[np.int64]:
        """Return the numbers of a split's concepts, ascending; its length is that of classes."""
        splits = np.array(self.splits)
        if split == "training":
            return np.flatnonzero((splits == "base") | (splits == "extra"))
        return np.flatnonzero(splits == split)

    def classes(self, concepts: Sequence[int], split: ThingSplit) -> NDArray[np.int64]:
        """Return the classes of a split's concepts: 0 to `len(concepts(split)) - 1`.

        Raises:
            ValueError: a concept is of another split.
        """
        known = self.concepts(split)
        classes: NDArray[np.int64] = np.searchsorted(known, concepts)
        if not np.array_equal(known[np.minimum(classes, len(known) - 1)], concepts):
            raise ValueError(f"not all of {list(concepts)} are {split} concepts")
        return classes

    def grounds(self, split: ThingSplit) -> list[Image.Image]:
        """Return the photographs behind a split's concepts."""
        return list(self.photographs["held-out" if split == "held-out" else "base"].values())

    def hands(self, concept: int, hands: Sequence[Hand] = HANDS) -> list[Hand]:
        """Return those of `hands` who have drawn a concept."""
        return [hand for hand in hands if concept in self.tiles[hand]]

    @cache  # noqa: B019
    def _drawn(self, hand: Hand) -> NDArray[np.bool_]:
        """Return of every concept whether a hand has drawn it, [C]."""
        drawn = np.zeros(len(self.names), dtype=np.bool_)
        drawn[list(self.tiles[hand])] = True
        return drawn

    def others(self, hand: Hand, concept: int, split: ThingSplit) -> NDArray[np.int64]:
        """Return a split's concepts that a hand has drawn and that are no near-duplicates."""
        others = self.concepts(split)
        strange = self.groups[others] != self.groups[concept]
        chosen: NDArray[np.int64] = others[self._drawn(hand)[others] & strange]
        return chosen

    @cache  # noqa: B019
    def colour_twins(self, hand: Hand, concept: int, split: ThingSplit) -> NDArray[np.int64]:
        """Return the eight `others` whose colours, drawn by a hand, are nearest to a concept's.

        Nearness is the Bhattacharyya coefficient of two blurred histograms of 8x8x8 colours.
        """
        histograms = _histograms(self, hand)
        others = self.others(hand, concept, split)
        nearness = histograms[others] @ histograms[concept]
        order = np.argsort(-nearness, kind="stable")
        return others[order[:_TWINS]]


def _atlas() -> bytes:
    return files("uino_deploy.data").joinpath("things.zip").read_bytes()


def _image(atlas: zipfile.ZipFile, name: str, mode: str) -> Image.Image:
    return Image.open(io.BytesIO(atlas.read(name)), formats=("WEBP",)).convert(mode)


@cache
def _histograms(things: Things, hand: Hand) -> NDArray[np.float32]:
    """Return the root of every concept's colour histogram, [C, 512]: rows of length 1, or 0."""
    rows = np.zeros((len(things.names), _LEVELS**3))
    for concept, tile in things.tiles[hand].items():
        pixels = np.asarray(tile).reshape(-1, 4)
        cells = colour_cells(pixels[pixels[:, 3] > 127, :3], _LEVELS)
        rows[concept] = np.bincount(cells, minlength=_LEVELS**3) / len(cells)
    flat = blurred(rows.reshape(-1, _LEVELS, _LEVELS, _LEVELS)).reshape(len(rows), -1)
    sums = flat.sum(axis=1, keepdims=True)
    roots: NDArray[np.float64] = np.sqrt(flat / np.where(sums, sums, 1))
    return roots.astype(np.float32)
