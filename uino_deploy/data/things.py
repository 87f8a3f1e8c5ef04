"""The atlas of things: concepts drawn by three hands, photographs, and how both are split.

A concept is a thing with a name, such as "hot dog"; a hand is a set of pictures by one maker.
Held-out concepts and the photographs behind them are never trained on, and near-duplicates of a
concept (its group: all balls, all dogs) are on its side of the split. `things_notice.txt` tells
the licences; `tools/make_things.py` builds the file and states the rules.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ThingSplit = Literal["base", "held-out"]
Hand = Literal["noto", "twemoji", "fluent"]

HANDS: tuple[Hand, ...] = get_args(Hand)
KNOWN_HANDS: tuple[Hand, ...] = ("noto", "twemoji")
"""The hands that training sees."""
UNSEEN_HAND: Hand = "fluent"

_LEVELS = 8  # of each colour in a histogram


@dataclass(frozen=True, eq=False)
class Things:
    """The decoded atlas; about 20 MB.

    Attributes:
        names: of every concept; an index into them is a concept's number.
        groups: int64 [C], equal for near-duplicates.
        splits: of every concept.
        tiles: hand -> the concepts' pictures, RGBA, [C] of one size.
        photographs: split -> RGB images.
    """

    names: tuple[str, ...]
    groups: NDArray[np.int64]
    splits: tuple[ThingSplit, ...]
    tiles: dict[Hand, tuple[Image.Image, ...]]
    photographs: dict[ThingSplit, dict[str, Image.Image]]

    @staticmethod
    @cache
    def load() -> Things:
        """Decode the atlas, once for a process: a tenth of a second."""
        with zipfile.ZipFile(io.BytesIO(_atlas())) as atlas:
            index = json.loads(atlas.read("index.json"))
            concepts = index["concepts"]
            sheets = {hand: _image(atlas, f"{hand}.webp", "RGBA") for hand in HANDS}
            photographs: dict[ThingSplit, dict[str, Image.Image]] = {"base": {}, "held-out": {}}
            for name, split in index["photographs"].items():
                photographs[split][name] = _image(atlas, f"photographs/{name}.webp", "RGB")
        side, columns = index["side"], index["columns"]
        corners = [(n % columns * side, n // columns * side) for n in range(len(concepts))]
        return Things(
            tuple(concept["name"] for concept in concepts),
            np.array([concept["group"] for concept in concepts]),
            tuple(concept["split"] for concept in concepts),
            {
                hand: tuple(sheet.crop((x, y, x + side, y + side)) for x, y in corners)
                for hand, sheet in sheets.items()
            },
            photographs,
        )

    @cache  # noqa: B019 # there is one atlas
    def concepts(self, split: ThingSplit) -> NDArray[np.int64]:
        """Return the numbers of a split's concepts, ascending."""
        return np.flatnonzero(np.array(self.splits) == split)

    def others(self, concept: int) -> NDArray[np.int64]:
        """Return the concepts of the same split that are no near-duplicates of a concept."""
        same = np.array(self.splits) == self.splits[concept]
        return np.flatnonzero(same & (self.groups != self.groups[concept]))

    @cache  # noqa: B019
    def colour_twins(self, hand: Hand, concept: int, count: int = 8) -> NDArray[np.int64]:
        """Return the `others` whose colours, drawn by a hand, are nearest to a concept's.

        Nearness is the Bhattacharyya coefficient of two blurred histograms of 8x8x8 colours.
        """
        histograms = _histograms(self, hand)
        others = self.others(concept)
        nearness = histograms[others] @ histograms[concept]
        order = np.argsort(-nearness, kind="stable")
        return others[order[:count]]


def _atlas() -> bytes:
    return files("uino_deploy.data").joinpath("things.zip").read_bytes()


def _image(atlas: zipfile.ZipFile, name: str, mode: str) -> Image.Image:
    return Image.open(io.BytesIO(atlas.read(name))).convert(mode)


@cache
def _histograms(things: Things, hand: Hand) -> NDArray[np.float32]:
    """Return the root of every concept's colour histogram, [C, 512]: rows of unit length."""
    rows = []
    for tile in things.tiles[hand]:
        pixels = np.asarray(tile).reshape(-1, 4)
        colours = pixels[pixels[:, 3] > 127, :3].astype(np.int64) * _LEVELS // 256
        codes = colours @ (_LEVELS**2, _LEVELS, 1)
        rows.append(np.bincount(codes, minlength=_LEVELS**3) / len(codes))
    counts = np.array(rows).reshape(-1, _LEVELS, _LEVELS, _LEVELS)
    for axis in (1, 2, 3):  # a colour near the border of two cells counts for both
        padded = np.pad(counts, [(0, 0), *((int(each == axis),) * 2 for each in (1, 2, 3))])
        before, middle, after = (
            np.take(padded, range(start, start + _LEVELS), axis) for start in range(3)
        )
        counts = (before + 2 * middle + after) / 4
    flat = counts.reshape(len(rows), -1)
    roots: NDArray[np.float64] = np.sqrt(flat / flat.sum(axis=1, keepdims=True))
    return roots.astype(np.float32)
