"""Opens a data set by its command-line name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from uino_deploy.data.coco import Coco
from uino_deploy.data.dataset import Dataset, Split
from uino_deploy.data.folder import Folder
from uino_deploy.data.fss1000 import Fss1000
from uino_deploy.data.objects import Objects
from uino_deploy.data.pascal import Pascal
from uino_deploy.data.procedural import Procedural
from uino_deploy.data.thing_dataset import ThingDataset
from uino_deploy.errors import InputError

DatasetName = Literal[
    "demo",
    "digits",
    "things",
    "things-unseen-hand",
    "things-absent",
    "objects",
    "pascal",
    "coco",
    "fss1000",
    "folder",
]

DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)


def open_dataset(
    name: DatasetName,
    root: Path | None = None,
    fold: int | None = None,
    split: Split = "test",
    *,
    label: int | None = None,
    bits: int | None = None,
) -> Dataset:
    """Open one split of a data set.

    Args:
        name: one of `DATASETS`.
        root: the data set's folder; those that come with the package have none.
        fold: 0 to 3 for PASCAL-5i and COCO-20i; 0 to 4 or None for a folder; else None.
        split: "test" for the held-out classes (of a folder, images), "train" for the others.
        label: the object's value in a folder's masks of labels.
        bits: real depth of a folder's grey images of more than 8 bits.

    Raises:
        InputError: a folder, a fold, a label or bits are missing or superfluous, or the layout is
            wrong.
        DependencyError: the package that reads or draws the data is not installed.
    """
    if name != "folder" and (label is not None or bits is not None):
        raise InputError(f"data set {name} states its labels and bits", "leave out --label, --bits")
    if name not in {"pascal", "coco", "fss1000", "folder"}:
        if root is not None:
            raise InputError(f"data set {name} comes with the package", "leave out --data")
        _without_fold(name, fold)
        return _built_in(name, split)
    if root is None:
        raise InputError(f"data set {name} needs its folder", "give --data DIR")
    if name == "pascal":
        return Pascal(root, fold, split)
    if name == "coco":
        return Coco(root, fold, split)
    if name == "folder":
        return Folder(root, fold, split, label, bits)
    _without_fold(name, fold)
    return Fss1000(root, split)


def _without_fold(name: DatasetName, fold: int | None) -> None:
    if fold is not None:
        raise InputError(f"data set {name} has no folds", "leave out --fold")


def _built_in(name: DatasetName, split: Split) -> Dataset:
    if name == "demo":
        return Procedural(name, "held-out" if split == "test" else "base")
    if name == "things":
        return ThingDataset(name, "held-out" if split == "test" else "base")
    if split == "train":
        learnt = "demo" if name == "digits" else "things"
        raise InputError(f"data set {name} is only for evaluation", f"train on {learnt}")
    if name == "digits":
        return Procedural(name, "digits")
    return Objects() if name == "objects" else ThingDataset(name)
