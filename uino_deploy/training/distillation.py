"""Coarse-to-fine distillation of SAM's image embedding into the bottleneck adapter.

Source: UINO-FSS (arXiv 2504.15669), section on hierarchical distillation: only the adapter learns,
by the squared error between its output, resized to the teacher's grid, and the teacher's embedding
of the same image, at three growing sizes of the student's input.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.images import load_image, preprocess_image
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.loop import Task, shuffled
from uino_deploy.training.processes import Processes
from uino_deploy.training.teacher import Teacher

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_READERS = 4  # threads that decode and resize images


def stage_sizes(config: UinoConfig) -> tuple[int, ...]:
    """Return the student's input sizes: about a quarter, a half, the whole (126, 252, 518)."""
    patch = config.encoder.patch
    size = config.image_size
    return tuple(max(patch, size // part // patch * patch) for part in (4, 2, 1))


def list_images(folder: Path, most: int | None = None) -> list[Path]:
    """Return all images below a folder, by path.

    Args:
        folder: is searched with everything in it.
        most: no more than so many, spread evenly.

    Raises:
        InputError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(
            f"{folder} holds no image", f"it is searched for {', '.join(sorted(_SUFFIXES))}"
        )
    if most is not None and most < len(found):
        return [found[number * len(found) // most] for number in range(most)]
    return found


def names_digest(images: Sequence[Path], folder: Path) -> str:
    """Return a SHA-256 of the images' paths below their folder: two runs' lists are compared."""
    names = "\n".join(path.relative_to(folder).as_posix() for path in images)
    return hashlib.sha256(names.encode()).hexdigest()


class Distillation(Task):
    """The adapter of a model learning from a teacher.

    Args:
        model: its encoder is frozen; its adapter learns.
        teacher: gives the embeddings.
        images: to learn from.
        sizes: of the student's input, one for each stage.
        batch: images of a step, over all processes.
        seed: of the images' order.
        processes: this process among all.

    Raises:
        InputError: the teacher's embedding has other channels than the adapter's.
    """

    def __init__(
        self,
        model: UinoFSS,
        teacher: Teacher,
        images: Sequence[Path],
        sizes: Sequence[int],
        batch: int,
        seed: int,
        processes: Processes,
    ) -> None:
        super().__init__({"adapter": model.adapter})
        if teacher.width != model.config.decoder.width:
            raise InputError(
                f"the teacher's embedding has {teacher.width} channels, the adapter's "
                f"{model.config.decoder.width}",
                "take a preset whose decoder is SAM's: vits14, vitb14 or vitl14",
            )
        self.encoder = _up_to_early(model.encoder).requires_grad_(False)
        self._teacher = teacher
        self._images = images
        self._sizes = sizes
        self._batch = batch
        self._seed = seed
        self._processes = processes
        self._readers = ThreadPoolExecutor(_READERS)

    def forward(self, stage: int, step: int) -> Tensor:
        """Return the mean squared error on this process's share of a step's images."""
        chosen = self._processes.share(self._drawn(stage, step))
        pixels, targets = zip(
            *self._readers.map(lambda index: self._read(index, self._sizes[stage]), chosen),
            strict=True,
        )
        device = self._processes.device
        with torch.no_grad():
            early, _ = self.encoder(torch.from_numpy(np.stack(pixels)).to(device))
        found = self.trained["adapter"](early).float()
        grid = self._teacher.grid
        found = F.interpolate(found, size=(grid, grid), mode="bilinear", align_corners=False)
        return F.mse_loss(found, torch.from_numpy(np.stack(targets)).to(device))

    def _drawn(self, stage: int, step: int) -> list[int]:
        return list(
            shuffled(self._seed + stage, len(self._images), step * self._batch, self._batch)
        )

    def _read(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        path = self._images[index]
        return preprocess_image(load_image(path), size), self._teacher.embedding(path)


def _up_to_early(encoder: DinoVisionTransformer) -> DinoVisionTransformer:
    """Return an encoder with the same weights that stops after the block that the adapter reads."""
    short = copy.copy(encoder)
    early = encoder.config.early_layer
    short.config = replace(encoder.config, correlation_layers=(early,))
    return short
