"""FSS-1000: a thousand classes of ten images each.

Source: Li et al., "FSS-1000: A 1000-Class Dataset for Few-Shot Segmentation" (CVPR 2020). The 240
test classes are those that the authors published; the other 760 are for training, as the authors
leave the choice of validation classes to chance.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from uino_deploy.data.dataset import Dataset, Split, find_root
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8, load_image

TREE = "fewshot_data/CLASS/{1,2,...,10}.{jpg,png}, the .png a mask of its .jpg"

_NESTED = ("fewshot_data", "fewshot_data/fewshot_data", "FSS-1000", "FSS-1000/fewshot_data")
_CUT = 128  # as in common use: edges in the files are blurred


@cache
def held_out_classes() -> frozenset[str]:
    """Return the names of the 240 published test classes."""
    listing = files("uino_deploy.data").joinpath("fss1000_test.txt").read_text(encoding="utf-8")
    return frozenset(listing.split())


class Fss1000(Dataset):
    """FSS-1000's test or training classes; keys are paths such as `abacus/3.jpg`.

    Args:
        root: the folder with a folder for each class, or its parent.
        split: "test" has the published 240 classes, "train" all others.

    Raises:
        InputError: the layout is not FSS-1000's, or the split has no class.
    """

    name = "fss1000"

    def __init__(self, root: Path, split: Split = "test") -> None:
        self._root = next((root / name for name in _NESTED if _has_classes(root / name)), root)
        find_root(self._root, (), ".", TREE)
        wanted = held_out_classes()
        self.classes = tuple(
            sorted(
                folder.name
                for folder in self._root.iterdir()
                if _is_class(folder) and (folder.name in wanted) == (split == "test")
            )
        )
        self._keys: dict[int, list[str]] = {}
        if not self.classes:
            raise InputError(f"{root} has no {split} class of FSS-1000", f"expected: {TREE}")

    def images(self, label: int) -> list[str]:
        """Return the keys of a class's images."""
        if label not in self._keys:
            name = self.classes[label]
            images = (self._root / name).glob("*.jpg")
            self._keys[label] = sorted(f"{name}/{path.name}" for path in images)
        return self._keys[label]

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3]."""
        return load_image(self._root / key)

    def mask(self, key: str, label: int) -> UInt8:
        """Return an image's mask, uint8 [H, W] of 0 and 1; `label` is its folder's."""
        path = (self._root / key).with_suffix(".png")
        if Path(key).parent.name != self.classes[label] or not path.is_file():
            raise InputError(f"{self._root} has no mask of {key}", f"expected: {TREE}")
        try:
            with Image.open(path) as image:
                return (np.asarray(image.convert("L")) >= _CUT).astype(np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"mask {path} cannot be read: {error}") from error


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*.jpg"), None) is not None


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_class, folder.iterdir()))
