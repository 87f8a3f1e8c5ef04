"""Real objects in photographs that no training sees, with masks drawn by hand as polygons.

`objects.json` lists views: a class, a photograph of the atlas, the box [left, top, right, bottom]
cut from it and the polygons of the class's objects, in the photograph's pixels. The views of a
class show different objects and share no pixel, so a query is never its support again. The set is
small: `most_episodes` says how small.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from itertools import combinations

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.things import Things
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8


class View(msgspec.Struct, frozen=True, rename={"label": "class"}):
    """Some objects of one class in a part of a photograph."""

    label: str
    photograph: str
    box: tuple[int, int, int, int]
    polygons: tuple[tuple[tuple[float, float], ...], ...]


@cache
def views() -> tuple[View, ...]:
    """Return all views."""
    text = files("uino_deploy.data").joinpath("objects.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[View, ...])


class Objects(Dataset):
    """The views as a data set; a key is a view's position in the list."""

    def __init__(self) -> None:
        self.name = "objects"
        self.classes = tuple(dict.fromkeys(view.label for view in views()))

    def images(self, label: int) -> list[str]:
        """Return the keys of a class's views."""
        return [str(n) for n, view in enumerate(views()) if view.label == self.classes[label]]

    def image(self, key: str) -> UInt8:
        """Return a view, uint8 RGB [H, W, 3]."""
        view = self._view(key)
        photograph = Things.load().photographs["held-out"][view.photograph]
        return np.asarray(photograph.crop(view.box))

    def mask(self, key: str, label: int) -> UInt8:
        """Return the mask of a class in a view that shows it, uint8 [H, W] of 0 and 1."""
        view = self._view(key)
        if view.label != self.classes[label]:
            raise InputError(f"view {key} shows {view.label!r}, another class")
        left, top, right, bottom = view.box
        drawn = Image.new("L", (right - left, bottom - top))
        for polygon in view.polygons:
            ImageDraw.Draw(drawn).polygon([(x - left, y - top) for x, y in polygon], fill=1)
        return np.asarray(drawn)

    def episode(self, seed: int, index: int, shots: int) -> ListedEpisode:
        """Return an episode of a fixed list of all, in the order that the seed shuffles.

        Raises:
            InputError: the list is over.
        """
        listed = self._all(shots)
        if index >= len(listed):
            raise InputError(f"objects has only {len(listed)} episodes with {shots} shots",
                             f"give --episodes {len(listed)}, or fewer shots")  # fmt: skip
        return listed[int(np.random.default_rng(seed).permutation(len(listed))[index])]

    def most_episodes(self, shots: int) -> int:
        """Return how many different episodes there are."""
        return len(self._all(shots))

    def _all(self, shots: int) -> list[ListedEpisode]:
        """Return every query with every choice of other views of its class as the support."""
        return [
            ListedEpisode(label, support, query)
            for label in range(len(self.classes))
            for query in self.images(label)
            for support in combinations(self.images(label), shots)
            if query not in support
        ]

    def _view(self, key: str) -> View:
        if not key.isdecimal() or int(key) >= len(views()):
            raise InputError(f"objects has no view {key!r}", f"give 0 to {len(views()) - 1}")
        return views()[int(key)]
