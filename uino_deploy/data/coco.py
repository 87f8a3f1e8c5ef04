"""COCO-20i: the 80 classes of COCO 2014 in four folds of twenty.

Source: Nguyen and Todorovic, "Feature Weighting and Boosting for Few-Shot Segmentation" (ICCV
2019): fold i holds out the classes whose position is i modulo 4. Models are trained on train2014
and evaluated on val2014.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from uino_deploy.data.dataset import Dataset, Split, check_fold, find_root
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.images import UInt8, load_image

FOLDS = 4

TREE = "COCO2014/{annotations/instances_{train,val}2014.json, train2014/*.jpg, val2014/*.jpg}"

_PARTS: dict[Split, str] = {"train": "train2014", "test": "val2014"}


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    # Decoded on demand: train2014 has 600,000 annotations.
    segmentation: msgspec.Raw


class _Instances(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


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
        self._instances = _read(self._root / self._path)
        categories = sorted(self._instances.categories, key=lambda category: category.id)
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
        mask = np.zeros((entry.height, entry.width), np.uint8)
        for segmentation in self._segmentations.get((entry.id, self._categories[label]), ()):
            mask |= _decode(segmentation, entry, self._path)
        return mask

    @cached_property
    def _by_key(self) -> dict[str, _Image]:
        return {f"{self._part}/{each.file_name}": each for each in self._instances.images}

    @cached_property
    def _segmentations(self) -> dict[tuple[int, int], list[msgspec.Raw]]:
        """The undecoded segmentations of every image and category."""
        wanted = set(self._categories)
        segmentations: dict[tuple[int, int], list[msgspec.Raw]] = {}
        for each in self._instances.annotations:
            if each.category_id in wanted:
                key = each.image_id, each.category_id
                segmentations.setdefault(key, []).append(each.segmentation)
        return segmentations

    @cached_property
    def _showing(self) -> list[list[str]]:
        keys = {entry.id: key for key, entry in self._by_key.items()}
        showing: dict[int, list[str]] = {category: [] for category in self._categories}
        for image, category in self._segmentations:
            if image not in keys:
                raise InputError(f"{self._path} annotates image {image}, which it does not list")
            showing[category].append(keys[image])
        return [sorted(names) for names in showing.values()]


def _read(path: Path) -> _Instances:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Instances)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a COCO annotation file: {error}") from error


def _decode(raw: msgspec.Raw, image: _Image, path: Path) -> UInt8:
    """Rasterise polygons or run lengths, compressed or not, as COCO's own tools do."""
    from pycocotools import mask as tools  # type: ignore[import-untyped] # it ships no types

    size = (image.height, image.width)
    value: Any = msgspec.json.decode(raw)
    if value == []:
        return np.zeros(size, np.uint8)
    try:
        if isinstance(value, list):
            _check_polygons(value)
            runs = tools.merge(tools.frPyObjects(value, *size))
        else:
            _check_runs(value, size)
            compressed = isinstance(value["counts"], str)
            runs = value if compressed else tools.frPyObjects(value, *size)
        with warnings.catch_warnings():  # its arrays lack a keyword that numpy 2 needs
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(tools.decode(runs), dtype=np.uint8)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: a segmentation of image {image.file_name} is neither polygons nor run "
            f"lengths of its size: {error}"
        ) from error


def _check_polygons(value: list[Any]) -> None:
    """Raise ValueError if the library would not accept the numbers as polygons."""
    for polygon in value:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers")


def _check_runs(value: dict[str, Any], size: tuple[int, int]) -> None:
    """Raise ValueError if run lengths have another size: the library does not check."""
    if tuple(value["size"]) != size:
        raise ValueError(f"run lengths for size {value['size']}")
    counts = value["counts"]
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels")
