"""A user's own data: for each class, a folder of images and one of masks with the same names."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

from uino_deploy.data.dataset import Dataset, Split, check_fold, find_root
from uino_deploy.errors import InputError
from uino_deploy.images import SUFFIXES, UInt8, load_image, load_marked
from uino_deploy.inputs import few, nfc, notice, printable

FOLDS = 5

TREE = (
    "DIR/{images/NAME.jpg, masks/NAME.png} for one class, or DIR/CLASS/{images,masks} for several; "
    "a mask has two levels, or soft edges, or labels and a border of 255 that is ignored"
)


class Folder(Dataset):
    """Images and masks in folders; keys are paths such as `mug/images/0001.jpg`.

    The folds split the images, not the classes: every fifth image of a class, in order of name,
    is held out. Without a fold, no image is.

    Args:
        root: the folder.
        fold: 0 to 4, or None for all images.
        split: "test" has a fold's images, "train" the others.
        label: the object's value in masks of labels; None for all but 0.
        bits: real depth of grey images of more than 8 bits; None to find it.

    Raises:
        InputError: the layout is wrong, an image or a mask has no partner, or a class has
            fewer than two images in the split.
    """

    name = "folder"

    def __init__(
        self,
        root: Path,
        fold: int | None = None,
        split: Split = "test",
        label: int | None = None,
        bits: int | None = None,
    ) -> None:
        if fold is not None:
            check_fold(fold, FOLDS, "a folder")
        self._root, self._label, self._bits = root, label, bits
        homes = _homes(root)
        self.classes = tuple(home.resolve().name for home in homes)
        self._masks: dict[str, Path] = {}
        self._keys: list[list[str]] = []
        for home in homes:
            pairs = _pairs(home)
            chosen = [
                image
                for position, image in enumerate(pairs)
                if fold is None or (position % FOLDS == fold) == (split == "test")
            ]
            if len(chosen) < 2:
                where = "" if fold is None else f" in the {split} images of fold {fold}"
                raise InputError(
                    f"{home} has {len(chosen)} of its {len(pairs)} images{where}",
                    "an episode needs two: a support and a query",
                )
            keys = {image.relative_to(root).as_posix(): pairs[image] for image in chosen}
            self._keys.append(list(keys))
            self._masks |= keys

    def images(self, label: int) -> Sequence[str]:
        """Return the keys of a class's images, sorted by name."""
        return self._keys[label]

    def shows(self, key: str, label: int) -> bool:
        """Return whether a picture is one of a class's, or a copy of one under the same name."""
        mine = Path(key)
        namesakes = (each for each in self._keys[label] if Path(each).name == mine.name)
        return any(
            filecmp.cmp(self._root / key, self._root / each, shallow=False) for each in namesakes
        )

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3]."""
        return load_image(self._root / key, self._bits)

    def mask(self, key: str, label: int) -> UInt8:
        """Return an image's mask, uint8 [H, W]: 0, 1, or 255 on a border that is ignored."""
        if key not in self._keys[label]:
            raise InputError(f"{self._root} has no image {key} of {self.classes[label]!r}")
        return load_marked(self._masks[key], self._root / key, self._label)


def _homes(root: Path) -> list[Path]:
    """Return the folders that hold `images` and `masks`."""
    if root.is_dir() and not (root / "images").is_dir():
        homes = sorted(path.parent for path in root.glob("*/images") if path.is_dir())
        if homes:
            return homes
    return [find_root(root, (), "images", TREE)]


def _pairs(home: Path) -> dict[Path, Path]:
    """Return the images of a class, sorted by name, and their masks."""
    images, masks = _by_stem(home / "images"), _by_stem(home / "masks")
    for one, other, what in ((images, masks, "masks"), (masks, images, "images")):
        lonely = sorted(one.keys() - other.keys())
        if lonely:
            raise InputError(
                f"{len(lonely)} files have no partner in {home / what}, the first {lonely[0]}",
                f"expected: {TREE}",
            )
    return {images[stem]: masks[stem] for stem in sorted(images)}


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist", f"expected: {TREE}")
    by_stem: dict[str, Path] = {}
    skipped = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in SUFFIXES:
            skipped.append(printable(path.name))
            continue
        stem = nfc(path.stem)
        if stem in by_stem:
            other = by_stem[stem].name
            raise InputError(f"{folder} has {other} and {path.name}", "keep one")
        by_stem[stem] = path
    if skipped:
        notice("skipped files", f"{folder}: not images, skipped: {few(skipped, 5)}")
    return by_stem
