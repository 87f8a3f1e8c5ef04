"""What a forecast runs on: drawn things with their masks, or a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uino_deploy.data.photographs import ellipse
from uino_deploy.data.thing_episodes import sample_episode
from uino_deploy.data.things import ThingSplit
from uino_deploy.errors import InputError
from uino_deploy.export.forecast.chain import Sample, UInt8
from uino_deploy.images import load_image, load_mask

COUNT = 4
_SEED = 14


def thing_samples(
    count: int = COUNT, split: ThingSplit = "base", seed: int = _SEED
) -> list[Sample]:
    """Return scenes that show one thing; each is segmented by the scene before it.

    Args:
        count: scenes, 2 or more.
        split: of things and photographs; "held-out" shares neither with "base".
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    episode = sample_episode(rng, split=split, shots=count - 1)
    scenes = [*episode.support, episode.query]
    return _ring([f"{episode.name} {n}" for n in range(count)], [(s.image, s.mask) for s in scenes])


def folder_samples(images: Path, shots: Sequence[tuple[Path, Path]], count: int) -> list[Sample]:
    """Return the images of a folder.

    Args:
        images: the folder; its first images by name are used.
        shots: images and masks of the class that is asked for; if empty, each image is segmented by
            an ellipse in the one before it, since only changes of the mask count.
        count: the most images.

    Raises:
        InputError: the folder holds no image or only one, or a file cannot be read.
    """
    from uino_deploy.runtime.batch import find_images

    if not images.is_dir():
        raise InputError(f"{images} is not a folder", "give a folder of images")
    paths = find_images([str(images)])[:count]
    loaded = [load_image(path) for path in paths]
    names = [path.name for path in paths]
    if shots:
        given = [(load_image(image), load_mask(mask, image)) for image, mask in shots]
        return [Sample(n, image, given) for n, image in zip(names, loaded, strict=True)]
    if len(paths) < 2:
        raise InputError(f"{images} holds one image", "give two or more, or --shot IMAGE:MASK")
    masks = [ellipse(image.shape[0], image.shape[1], n) for n, image in enumerate(loaded)]
    return _ring(names, list(zip(loaded, masks, strict=True)))


def _ring(names: Sequence[str], marked: Sequence[tuple[UInt8, UInt8]]) -> list[Sample]:
    """Return samples of which each takes the marked image before it as its one shot."""
    return [
        Sample(name, image, [marked[n - 1]])
        for n, (name, (image, _)) in enumerate(zip(names, marked, strict=True))
    ]
