"""Support images and masks from command-line arguments: mask files, or a COCO file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uino_deploy.errors import InputError
from uino_deploy.images import UInt8, polygons_from_coco

Shot = tuple[Path, Path | UInt8]


def read_shots(shots: Sequence[str], coco: Path | None = None, category: str = "") -> list[Shot]:
    """Return each support image with its mask, ready for `Predictor.enroll`.

    Args:
        shots: `IMAGE:MASK` each; with `coco` only the image.
        coco: COCO annotation file whose polygons are the masks; None for mask files.
        category: the category's name in that file.

    Returns:
        An image's path, and its mask's path or uint8 [H, W] of 0 and 1, for each shot.

    Raises:
        InputError: a shot has no mask, a file does not exist, or the COCO file lacks the image or
            the category.
    """
    if coco is None:
        return [split_shot(shot) for shot in shots]
    images = [Path(shot) for shot in shots]
    return [(image, polygons_from_coco(coco, image.name, category)) for image in images]


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
        if image.is_file() and mask.is_file():
            return image, mask
    image_name, _, mask_name = shot.rpartition(":")
    missing = mask_name if Path(image_name).is_file() else image_name
    raise InputError(f"shot {shot!r}: {missing!r} does not exist", "write --shot IMAGE:MASK")
