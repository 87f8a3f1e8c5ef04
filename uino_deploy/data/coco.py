"""COCO-20i: the 80 classes of COCO 2014 in four folds of twenty.

Source: Nguyen and Todorovic, "Feature Weighting and Boosting for Few-Shot Segmentation" (ICCV
2019): fold i holds out the classes whose position is i modulo 4. Models are trained on train2014
and evaluated on val2014.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from uino_deploy.data.dataset import Dataset, Split, check_fold, find_root
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8, load_image
from uino_deploy.images.coco_file import (
    CocoCategory,
    CocoImage,
    Id,
    Segmentation,
    check_area,
    mask_of_runs,
    read_coco,
    read_segmentations,
    size_of,
)
from uino_deploy.images.opening import read_header
from uino_deploy.images.reading import turn_with
from uino_deploy.inputs import few, notice

FOLDS = 4

TREE = "COCO2014/{annotations/instances_{train,val}2014.json, train2014/*.jpg, val2014/*.jpg}"

_PARTS: dict[Split, str] = {"train": "train2014", "test": "val2014"}


class Coco(Dataset):
    """One fold of COCO-20i; keys are paths such as `val2014/COCO_val2014_000000000042.jpg`.

    A class's mask is the union of all its annotations in an image, crowds included, as in the
    masks in common use. No pixel is ignored.

    Args:
        root: the folder of COCO 2014, or its parent.
        fold: 0 to 3.
        split: "test" has the fold's classes in val2014, "train" the others in train2014.

    Raises:
        InputError: the layout is not that of COCO 2014, or the annotations cannot be read.
        DependencyError: pycocotools is not installed.
    """

    name = "coco"

    def __init__(self, root: Path, fold: int | None, split: Split = "test") -> None:
        fold = check_fold(fold, FOLDS, "COCO-20i")
        require("coco", "pycocotools")
        self._part = _PARTS[split]
        self._path = Path("annotations") / f"instances_{self._part}.json"
        self._root = find_root(root, ("COCO2014", "coco"), str(self._path), TREE)
        if not (self._root / self._part).is_dir():
            raise InputError(f"{self._root} has no {self._part}", f"expected: {TREE}")
        self._instances = read_coco(self._root / self._path)
        categories = sorted(
            self._instances.categories, key=lambda category: (str(type(category.id)), category.id)
        )
        if len({category.id for category in categories}) < len(categories):
            raise InputError(f"{self._root / self._path} has two categories of one id")
        chosen = [
            category
            for position, category in enumerate(categories)
            if (position % FOLDS == fold) == (split == "test")
        ]
        self.classes = tuple(category.name for category in chosen)
        self._categories = [category.id for category in chosen]

    def images(self, label: int) -> list[str]:
        """Return the keys of the images with an annotation of a class."""
        return self._showing[label]

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3]."""
        return load_image(self._root / key)

    def mask(self, key: str, label: int) -> UInt8:
        """Return the union of a class's annotations in an image, uint8 [H, W] of 0 and 1."""
        entry = self._by_key.get(key)
        if entry is None:
            raise InputError(f"{self._path} has no image {key}")
        header = read_header(self._root / key)
        size = size_of(entry, [header.shape, (header.height, header.width)], self._path)
        mask = np.zeros(size, np.uint8)
        raws = self._segmentations.get((entry.id, self._categories[label]), {})
        shapes = read_segmentations(raws, *size, f"{self._path}: image {entry.file_name}")
        unusable = [each.unusable for each in shapes if each.unusable]
        if unusable and len(unusable) == len(shapes):
            raise InputError(f"{self._path}: image {entry.file_name} is not marked: {unusable[0]}")
        try:
            check_area(shapes, *size)
        except ValueError as error:
            raise InputError(f"{self._path}: image {entry.file_name} has {error}") from error
        for shape in shapes:
            mask |= _drawn(shape, size)
        return turn_with(mask, self._root / key, f"its mask in {self._path}")

    @cached_property
    def _by_key(self) -> dict[str, CocoImage]:
        return {f"{self._part}/{each.file_name}": each for each in self._instances.images}

    @cached_property
    def _segmentations(self) -> dict[tuple[Id, Id], dict[str, msgspec.Raw]]:
        """Every image's and category's segmentations, undecoded, by their annotation's name."""
        wanted = set(self._categories)
        segmentations: dict[tuple[Id, Id], dict[str, msgspec.Raw]] = {}
        listed = {entry.id for entry in self._instances.images}
        strays: list[str] = []
        for row, each in enumerate(self._instances.annotations):
            if each.category_id not in wanted:
                continue
            if each.image_id not in listed:
                strays.append(f"{each.id} [{row}] of image {each.image_id}")
                continue
            key = each.image_id, each.category_id
            segmentations.setdefault(key, {})[f"annotation {each.id} [{row}]"] = each.segmentation
        if strays:
            told = f"{self._path}: skipped {len(strays)} annotations of images it does not list: "
            notice("skipped annotations", told + few(strays))
        return segmentations

    @cached_property
    def _showing(self) -> list[list[str]]:
        keys = {entry.id: key for key, entry in self._by_key.items()}
        showing: dict[Id, list[str]] = {category: [] for category in self._categories}
        for image, category in self._segmentations:
            showing[category].append(keys[image])
        return [sorted(names) for names in showing.values()]


def _order(category: CocoCategory) -> tuple[bool, Id]:
    return isinstance(category.id, str), category.id


def _drawn(shape: Segmentation, size: tuple[int, int]) -> UInt8:
    """Rasterise polygons as COCO's own tools do, which take only what has been checked."""
    from pycocotools import mask as tools  # type: ignore[import-untyped] # it ships no types

    if shape.runs is not None:
        return mask_of_runs(shape.runs, *size)
    if not shape.polygons:
        return np.zeros(size, np.uint8)
    runs = tools.merge(tools.frPyObjects(shape.polygons, *size))
    with warnings.catch_warnings():  # its arrays lack a keyword that numpy 2 needs
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(tools.decode(runs), dtype=np.uint8)
