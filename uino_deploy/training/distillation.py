"""Coarse-to-fine distillation of SAM's image embedding into the bottleneck adapter.

Source: UINO-FSS (arXiv 2504.15669), section on hierarchical distillation: only the adapter is
trained, by the squared error between its output, resized to the teacher's grid, and the teacher's
embedding of the same image, at three growing sizes of the student's input.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.images import SUFFIXES, load_image, preprocess_image
from uino_deploy.model.assembly import Assembly
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.loop import Task
from uino_deploy.training.processes import Processes, join_processes
from uino_deploy.training.reporting import LOGGING, Reporter, Silence
from uino_deploy.training.run_folder import last_losses, prepared_folder
from uino_deploy.training.runs import initial_settings, train_parts
from uino_deploy.training.schedule import DISTILLATION, RunOptions
from uino_deploy.training.teacher import Teacher

_READERS = 4  # threads that decode and resize images


def stage_sizes(config: UinoConfig) -> tuple[int, ...]:
    """Return the student's input sizes: about a quarter, a half, and the whole (126, 252, 518)."""
    patch = config.encoder.patch
    size = config.image_size
    return tuple(max(patch, size // part // patch * patch) for part in (4, 2, 1))


def list_images(folder: Path, most: int | None = None) -> list[Path]:
    """Return the images in a folder and below it, sorted by path.

    Args:
        folder: where to search.
        most: keep at most this many, evenly spaced.

    Raises:
        InputError: the folder contains no image.
    """
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise InputError(
            f"{folder} contains no image",
            f"an image is a file that ends in {', '.join(sorted(SUFFIXES))}",
        )
    if most is not None and most < len(images):
        return [images[number * len(images) // most] for number in range(most)]
    return images


def names_digest(images: Sequence[Path], folder: Path) -> str:
    """Return a SHA-256 of the images' paths below their folder, to compare two runs."""
    names = "\n".join(path.relative_to(folder).as_posix() for path in images)
    return hashlib.sha256(names.encode()).hexdigest()


@dataclass(frozen=True)
class DistillationResult:
    """The result of `distill`.

    Attributes:
        checkpoint: path of the trained model.
        sizes: sides of the student's input in pixels, one for each stage.
        images: number of images.
        losses: mean loss over the last tenth of each stage's steps.
        settings: everything that the result depends on.
    """

    checkpoint: Path
    sizes: tuple[int, ...]
    images: int
    losses: list[float]
    settings: dict[str, Any]


def distill(
    assembly: Assembly,
    images: Path,
    sam_checkpoint: Path,
    folder: Path,
    options: RunOptions = DISTILLATION,
    *,
    steps: int = 2000,
    max_images: int | None = None,
    cache: Path | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter = LOGGING,
) -> DistillationResult:
    """Distil SAM's image encoder into a model's adapter, as `uino-deploy distill` does.

    Only the adapter is trained. A killed run continues with `resume` and ends with the result of an
    uninterrupted run. Under `torchrun` the processes share each batch, and the first one writes.

    Args:
        assembly: the model to start from, from `model.assembly`; trained in place.
        images: a folder of images, searched recursively.
        sam_checkpoint: the teacher: Segment Anything's ViT-B, L or H.
        folder: the run's folder; the result is `model.safetensors` in it.
        options: batch, learning rate, seed and the like.
        steps: steps of each of the three stages.
        max_images: use at most this many images, evenly spaced.
        cache: folder of the teacher's embeddings; `embeddings` in the run's folder if None.
        resume: continue the run in the folder.
        force: replace the run in the folder.
        reporter: where messages go; by default to Python's logger `uino_deploy.training`.

    Raises:
        CheckpointError: SAM's checkpoint is unreadable or contains no image encoder.
        InputError: the folder has no image, the teacher does not fit the model, or the run's
            folder holds a run with other settings.
        OutputExists: the folder is not empty, and neither `resume` nor `force` is given.
        CheckFailed: the loss is not finite, or a frozen part changed.
    """
    paths = list_images(images, max_images)
    sizes = stage_sizes(assembly.model.config)
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        if not processes.first:
            reporter = Silence()
        teacher = Teacher(sam_checkpoint, cache or folder / "embeddings", processes.device)
        settings = {
            **initial_settings(assembly),
            **options.settings(),
            "steps": steps,
            "sizes": list(sizes),
            "teacher": teacher.fingerprint,
            "images": names_digest(paths, images),
        }
        stack.enter_context(prepared_folder(folder, settings, resume, force, processes))
        _fill_cache(teacher, paths, processes, reporter)
        task = Distillation(
            assembly.model, teacher, paths, sizes, options.batch, options.seed, processes
        )
        checkpoint = train_parts(
            assembly,
            task,
            [steps] * len(sizes),
            folder,
            options,
            settings,
            "uino-deploy distill",
            processes,
            reporter,
        )
    losses = last_losses(folder, len(sizes))
    return DistillationResult(checkpoint, sizes, len(paths), losses, settings)


def _fill_cache(
    teacher: Teacher, images: Sequence[Path], processes: Processes, reporter: Reporter
) -> None:
    """Compute every image's embedding in advance, so that no step waits; each process its share."""
    share = images[processes.rank :: processes.count]
    with reporter.progress("embedding", len(share)) as done:
        for image in share:
            teacher.embedding(image)
            done()
    processes.wait()


class Distillation(Task):
    """The task of making the adapter's output match a teacher's embeddings.

    Args:
        model: its encoder is frozen; its adapter learns.
        teacher: computes the embeddings.
        images: files to learn from.
        sizes: sides of the student's input in pixels, one for each stage.
        batch: images per step, summed over processes.
        seed: selects the order of the images.
        processes: this process's place among all.

    Raises:
        InputError: the teacher's embedding has another number of channels than the adapter's.
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
                "use a preset whose decoder is SAM's: vits14, vitb14 or vitl14",
            )
        self.encoder = up_to_early(model.encoder).requires_grad_(False)
        self._teacher = teacher
        self._images = images
        self._sizes = sizes
        self._batch = batch
        self._seed = seed
        self._processes = processes
        self._readers = ThreadPoolExecutor(_READERS)

    def forward(self, stage: int, step: int) -> Tensor:
        """Return the mean squared error on this process's share of a step's images."""
        chosen = self._processes.share(self._image_numbers(stage, step))
        pixels, targets = zip(
            *self._readers.map(lambda index: self._read(index, self._sizes[stage]), chosen),
            strict=True,
        )
        device = self._processes.device
        with torch.no_grad():
            early, _ = self.encoder(torch.from_numpy(np.stack(pixels)).to(device))
        learned = self.trained["adapter"](early).float()
        grid = self._teacher.grid
        learned = F.interpolate(learned, size=(grid, grid), mode="bilinear", align_corners=False)
        return F.mse_loss(learned, torch.from_numpy(np.stack(targets)).to(device))

    def _image_numbers(self, stage: int, step: int) -> list[int]:
        return list(
            shuffled(self._seed + stage, len(self._images), step * self._batch, self._batch)
        )

    def _read(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        path = self._images[index]
        return preprocess_image(load_image(path), size), self._teacher.embedding(path)


def up_to_early(encoder: DinoVisionTransformer) -> DinoVisionTransformer:
    """Return an encoder with the same weights that stops at the block that the adapter reads."""
    short = copy.copy(encoder)
    early = encoder.config.early_layer
    short.config = replace(encoder.config, correlation_layers=(early,))
    return short


def shuffled(seed: int, count: int, first: int, size: int) -> Iterator[int]:
    """Yield items `first` to `first + size` of an endless sequence of shuffled passes.

    Args:
        seed: selects the sequence.
        count: items in a pass.
        first: the first item's position.
        size: how many to yield.
    """
    for position in range(first, first + size):
        turn, place = divmod(position, count)
        yield int(_order(seed, turn, count)[place])


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(count)
