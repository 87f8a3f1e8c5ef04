"""Support images and masks from command-line arguments: mask files, or a COCO file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uino_deploy.errors import InputError
from uino_deploy.images import UInt8, load_image, load_mask, polygons_from_coco
from uino_deploy.inputs import find_file
from uino_deploy.runtime.batch import find_images

Shot = tuple[Path | UInt8, Path | UInt8]


def read_shots(
    shots: Sequence[str],
    coco: Path | None = None,
    category: str = "",
    label: int | None = None,
    bits: int | None = None,
) -> list[Shot]:
    """Return each support image with its mask, as `Predictor.enroll` takes them.

    Args:
        shots: `IMAGE:MASK` each; with `coco` only the image.
        coco: COCO annotation file whose polygons are the masks; None for mask files.
        category: the category's name in that file.
        label: the object's value in mask files that hold labels.
        bits: real depth of grey images of more than 8 bits; None to find it.

    Returns:
        An image and its mask for each shot: paths, or uint8 [H, W, 3], and uint8 [H, W] of 0 and 1.

    Raises:
        InputError: a shot has no mask, a file does not exist, or the COCO file lacks the image or
            the category.
    """
    read: list[Shot] = []
    for shot in shots:
        mask: Path | UInt8
        if coco is None:
            image, mask = split_shot(shot)
            mask = mask if label is None else load_mask(mask, image, label)
        else:
            image = Path(shot)
            mask = polygons_from_coco(coco, image, category)
        read.append((image if bits is None else load_image(image, bits), mask))
    return read


def read_negatives(inputs: Sequence[str], bits: int | None = None) -> list[Path | UInt8]:
    """Return the images that do not show a class, as `Predictor.enroll` takes them.

    Args:
        inputs: files, folders or globs, as in `find_images`.
        bits: real depth of grey images of more than 8 bits; None to find it.

    Raises:
        InputError: an input matches no image.
    """
    images = find_images(inputs) if inputs else []
    return [image if bits is None else load_image(image, bits) for image in images]


def files_of(
    shots: Sequence[str], coco: Path | None = None, negatives: Sequence[str] = ()
) -> list[Path]:
    """Return the files that `read_shots` and `read_negatives` read; errors as there."""
    without = find_images(negatives) if negatives else []
    if coco is not None:
        return [coco, *map(Path, shots), *without]
    return [*(path for shot in shots for path in split_shot(shot)), *without]


def split_shot(shot: str) -> tuple[Path, Path]:
    """Split `IMAGE:MASK` at the last colon that leaves two files: paths may contain colons.

    Raises:
        InputError: there is no colon, or no colon leaves two files.
    """
    colons = [index for index, character in enumerate(shot) if character == ":"]
    if not colons:
        raise InputError(f"shot {shot!r} has no mask", "write --shot IMAGE:MASK, or add --coco")
    for index in reversed(colons):
        image, mask = Path(shot[:index]), Path(shot[index + 1 :])
        if _exists(image) and _exists(mask):
            return image, mask
    image_name, _, mask_name = shot.rpartition(":")
    missing = mask_name if _exists(Path(image_name)) else image_name
    problem = "is a folder" if missing and find_file(Path(missing)).is_dir() else "does not exist"
    raise InputError(f"shot {shot!r}: {missing!r} {problem}", "write --shot IMAGE:MASK")


def _exists(path: Path) -> bool:
    """Return whether a path exists and is no folder; what is no regular file is refused later."""
    found = find_file(path)
    return found.exists() and not found.is_dir()
