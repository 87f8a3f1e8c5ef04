"""PASCAL-5i: PASCAL VOC 2012's classes in four folds of five.

Source: Shaban et al., "One-Shot Learning for Semantic Segmentation" (BMVC 2017). Fold i holds out
classes 5i+1 to 5i+5; models are evaluated on VOC's validation images, and trained on VOC's training
images and those of SBD (Hariharan et al., ICCV 2011) that are not among the validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from uino_deploy.data.dataset import Dataset, Split, check_fold, find_root
from uino_deploy.data.matlab import MOST_BYTES, read_field
from uino_deploy.errors import InputError
from uino_deploy.images import IGNORED, UInt8, load_image
from uino_deploy.images.opening import read_picture
from uino_deploy.inputs import read_regular

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
FOLDS = 4

TREE = (
    "VOC2012/{JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val}.txt}, "
    "and for training SBD as VOC2012/SegmentationClassAug/*.png or as "
    "SBD/dataset/{cls/*.mat, train.txt, val.txt}"
)

_NESTED_VOC = ("VOC2012", "VOCdevkit/VOC2012")
_NESTED_SBD = ("SBD", "sbd", "benchmark_RELEASE")


class Pascal(Dataset):
    """One fold of PASCAL-5i; keys are paths such as `JPEGImages/2007_000033.jpg`.

    VOC's void border (255) is ignored in queries and training masks. Classes of the other split
    are background. Every image with a pixel of a class counts as showing it.

    Args:
        root: the folder of VOC 2012, or its parent.
        fold: 0 to 3.
        split: "test" has the fold's classes, "train" the other fifteen.

    Raises:
        InputError: the layout is not VOC's, or `split` is "train" and SBD is missing.
    """

    name = "pascal"

    def __init__(self, root: Path, fold: int | None, split: Split = "test") -> None:
        fold = check_fold(fold, FOLDS, "PASCAL-5i")
        held_out = range(5 * fold, 5 * fold + 5)
        self._voc = find_root(root, _NESTED_VOC, "ImageSets/Segmentation/val.txt", TREE)
        for needed in ("JPEGImages", "SegmentationClass"):
            if not (self._voc / needed).is_dir():
                raise InputError(f"{self._voc} has no {needed}", f"expected: {TREE}")
        self._sbd = _find_sbd((root, self._voc.parent, self._voc.parent.parent))
        self._numbers = [c + 1 for c in range(20) if (c in held_out) == (split == "test")]
        self.classes = tuple(CLASSES[number - 1] for number in self._numbers)
        self._names = self._listed("val") if split == "test" else self._training_names()

    def images(self, label: int) -> list[str]:
        """Return the keys of the images with a pixel of a class."""
        return self._showing[label]

    def holds(self, key: str, label: int) -> bool:
        """Return whether an image's file is there: looking for its classes would read all masks."""
        return self._path(key).is_file()

    def image(self, key: str) -> UInt8:
        """Return an image, uint8 RGB [H, W, 3]."""
        return load_image(self._path(key))

    def _path(self, key: str) -> Path:
        path = self._voc / key
        if not path.is_file() and self._sbd is not None:
            path = self._sbd / "img" / path.name
        return path

    def mask(self, key: str, label: int) -> UInt8:
        """Return a class's mask, uint8 [H, W]: 0, 1, or 255 on VOC's void border."""
        labels = self._labels(Path(key).stem)
        mask: UInt8 = (labels == self._numbers[label]).astype(np.uint8)
        mask[labels == IGNORED] = IGNORED
        return mask

    @cached_property
    def _showing(self) -> list[list[str]]:
        showing: dict[int, list[str]] = {number: [] for number in self._numbers}
        for name in self._names:
            for number in np.unique(self._labels(name)).tolist():
                if number in showing:
                    showing[number].append(f"JPEGImages/{name}.jpg")
        return list(showing.values())

    def _listed(self, which: str) -> list[str]:
        path = self._voc / "ImageSets" / "Segmentation" / f"{which}.txt"
        if not path.is_file():
            raise InputError(f"{path} does not exist", f"expected: {TREE}")
        return _read_names(path)

    def _training_names(self) -> list[str]:
        augmented = self._voc / "SegmentationClassAug"
        if augmented.is_dir():
            extra = {path.stem for path in augmented.glob("*.png")}
        elif self._sbd is not None:
            lists = (self._sbd / f"{which}.txt" for which in ("train", "val"))
            extra = {name for path in lists for name in _read_names(path)}
        else:
            raise InputError(f"SBD does not exist beside {self._voc}", f"expected: {TREE}")
        return sorted((extra | set(self._listed("train"))) - set(self._listed("val")))

    def _labels(self, name: str) -> UInt8:
        """Return an image's class numbers [H, W], 0 for the background, 255 for void."""
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            path = self._voc / folder / f"{name}.png"
            if path.is_file():
                return _read_indices(path)
        if self._sbd is not None and (self._sbd / "cls" / f"{name}.mat").is_file():
            return _read_sbd(self._sbd / "cls" / f"{name}.mat")
        raise InputError(f"{self._voc} has no mask of image {name}", f"expected: {TREE}")


def _find_sbd(places: Sequence[Path]) -> Path | None:
    """Return SBD's folder with `cls`, laid out as in its archive or as torchvision leaves it."""
    for place in places:
        for name in _NESTED_SBD:
            for folder in (place / name / "dataset", place / name):
                if (folder / "cls").is_dir():
                    return folder
    return None


def _read_indices(path: Path) -> UInt8:
    """Read a palette's indices, or the grey values that some copies store instead."""
    image, _ = read_picture(path, "mask")
    if image.mode not in {"P", "L"}:
        raise InputError(
            f"mask {path} has mode {image.mode}, not class numbers",
            "take VOC's own palette files, not colours",
        )
    return np.asarray(image)


def _read_sbd(path: Path) -> UInt8:
    try:
        return read_field(read_regular(path, "mask", MOST_BYTES), "GTcls", "Segmentation")
    except ValueError as error:
        raise InputError(f"{path} is not one of SBD's GTcls files: {error}") from error


def _read_names(path: Path) -> list[str]:
    """Read a list of images, one name a line."""
    try:
        return read_regular(path, "list", MOST_BYTES).decode().split()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of images: {error}") from error
