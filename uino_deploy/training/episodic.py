"""Episodic training on a data set: the encoder is frozen, the prompts and the decoder learn.

Source: UINO-FSS (arXiv 2504.15669): episodes of the base classes, BCE and Dice on the query's mask.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from uino_deploy.config import Variant
from uino_deploy.data.dataset import Dataset
from uino_deploy.data.open import DatasetName, open_dataset
from uino_deploy.images import IGNORED, Float32, UInt8, preprocess_image, preprocess_mask
from uino_deploy.model.assembly import Assembly
from uino_deploy.model.segmenter import UinoFSS, parameter_counts
from uino_deploy.training.loop import Task
from uino_deploy.training.losses import mask_loss
from uino_deploy.training.processes import Processes, join_processes
from uino_deploy.training.reporting import LOGGING, Reporter, Silence
from uino_deploy.training.run_folder import last_losses, prepared_folder
from uino_deploy.training.runs import initial_settings, train_parts
from uino_deploy.training.schedule import EPISODIC, RunOptions

_READERS = 4  # threads that decode and resize images

LEARNING: dict[Variant, tuple[str, ...]] = {
    "comp-star": ("prompt_generator",),
    "comp": ("prompt_generator", "decoder"),
    "full": ("prompt_generator", "decoder"),
    "cp4d": ("prompt_generator", "decoder"),
}
"""The parts of each variant that the paper trains; encoder and distilled adapter are frozen."""


@dataclass(frozen=True)
class EpisodicResult:
    """The result of `train`.

    Attributes:
        checkpoint: path of the trained model.
        parameters: number of parameters that learned.
        learned: names of the parts that learned.
        loss: mean loss over the last tenth of the steps.
        settings: everything that the result depends on.
    """

    checkpoint: Path
    parameters: int
    learned: tuple[str, ...]
    loss: float
    settings: dict[str, Any]


def train(
    assembly: Assembly,
    dataset: DatasetName,
    folder: Path,
    options: RunOptions = EPISODIC,
    *,
    data: Path | None = None,
    fold: int | None = None,
    shots: int = 1,
    steps: int = 10_000,
    train_adapter: bool = False,
    mirror: bool = True,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter = LOGGING,
) -> EpisodicResult:
    """Train a model on a data set's base classes, as `uino-deploy train --dataset` does.

    The encoder is frozen, and so are the adapter unless `train_adapter` is set and the decoder of
    the variant comp-star. A killed run continues with `resume` and ends with the result of an
    uninterrupted run. Under `torchrun` the processes share each batch, and the first one writes.

    Args:
        assembly: the model to start from, from `model.assembly`; trained in place.
        dataset: the data set's name.
        folder: the run's folder; the result is `model.safetensors` in it.
        options: batch, learning rate, seed and the like.
        data: the data set's folder; None for the drawn one, "demo".
        fold: the held-out fold; None if the data set has no folds.
        shots: support images per episode.
        steps: optimiser steps.
        train_adapter: also train the adapter.
        mirror: mirror half of the images; not for text.
        resume: continue the run in the folder.
        force: replace the run in the folder.
        reporter: where messages go; by default to Python's logger `uino_deploy.training`.

    Raises:
        InputError: the data set's layout is wrong, or the folder holds a run with other settings.
        OutputExists: the folder is not empty, and neither `resume` nor `force` is given.
        CheckFailed: the loss is not finite, or a frozen part changed.
    """
    model = assembly.model
    learning = LEARNING[model.config.variant] + (("adapter",) if train_adapter else ())
    opened = open_dataset(dataset, data, fold, "train")
    settings = {
        **initial_settings(assembly),
        **options.settings(),
        "dataset": dataset,
        "fold": fold,
        "classes": list(opened.classes),
        "shots": shots,
        "steps": steps,
        "learning": list(learning),
        "mirror": mirror,
    }
    counts = parameter_counts(model)
    parameters = sum(counts[part] for part in learning)
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        if not processes.first:
            reporter = Silence()
        stack.enter_context(prepared_folder(folder, settings, resume, force, processes))
        reporter.log(
            f"{model.config.variant}: {parameters:,} parameters ({parameters / 1e6:.2f} M) learn "
            f"from {len(opened.classes)} of the data set's classes: {', '.join(learning)}"
        )
        if "adapter" in assembly.untrained and not train_adapter:
            reporter.warn(
                "the adapter is frozen but was never distilled; use --train-adapter, or "
                "run `uino-deploy distill` first"
            )
        task = EpisodicTraining(
            model, learning, opened, shots, options.batch, options.seed, processes, mirror
        )
        checkpoint = train_parts(
            assembly,
            task,
            [steps],
            folder,
            options,
            settings,
            f"uino-deploy train --dataset {dataset}",
            processes,
            reporter,
        )
    (loss,) = last_losses(folder, 1)
    return EpisodicResult(checkpoint, parameters, learning, loss, settings)


class Sample(NamedTuple):
    """One episode as arrays.

    Attributes:
        query: [3, S, S], normalised.
        support: [K, 3, S, S], normalised.
        masks: [K, N], the share of each patch that is the class.
        truth: uint8 [S, S]: 0, 1, or 255 for pixels that do not count.
    """

    query: Float32
    support: Float32
    masks: Float32
    truth: UInt8


class EpisodicTraining(Task):
    """The task of segmenting a data set's classes from a few shots.

    Drawing and mirroring depend only on the seed and the episode's number.

    Args:
        model: every part outside `learning` is frozen.
        learning: names of the parts that learn.
        dataset: the base classes.
        shots: support images per episode.
        batch: episodes per step, summed over processes.
        seed: selects the sequence of episodes.
        processes: this process's place among all.
        mirror: mirror half of the images; not for text or anything else with a left and a right.
    """

    def __init__(
        self,
        model: UinoFSS,
        learning: tuple[str, ...],
        dataset: Dataset,
        shots: int,
        batch: int,
        seed: int,
        processes: Processes,
        mirror: bool = True,
    ) -> None:
        model.requires_grad_(False)
        super().__init__({name: model.get_submodule(name) for name in learning})
        self.trained.requires_grad_(True)
        self.model = model
        self._dataset = dataset
        self._shots = shots
        self._batch = batch
        self._seed = seed
        self._processes = processes
        self._mirrored = 0.5 if mirror else 0.0
        self._readers = ThreadPoolExecutor(_READERS)

    def forward(self, stage: int, step: int) -> Tensor:
        """Return the loss on this process's share of a step's episodes."""
        first = step * self._batch
        chosen = self._processes.share(list(range(first, first + self._batch)))
        query, support, masks, truth = (
            torch.from_numpy(np.stack(arrays)).to(self._processes.device)
            for arrays in zip(*self._readers.map(self.sample, chosen), strict=True)
        )
        logits, iou = self.model(query, support, masks)
        return mask_loss(logits, iou, (truth == 1).float(), counted=truth != IGNORED)

    def sample(self, index: int) -> Sample:
        """Read an episode of the training's endless list."""
        listed = self._dataset.episode(self._seed, index, self._shots)
        chances = np.random.default_rng([self._seed, index, 1]).random(self._shots + 1)
        config = self.model.config
        size, patch = config.image_size, config.encoder.patch
        pairs = [
            self._pair(key, listed.label, bool(chance < self._mirrored))
            for key, chance in zip((*listed.support, listed.query), chances, strict=True)
        ]
        *shots, (query, truth) = pairs
        squashed = Image.fromarray(truth).resize((size, size), Image.Resampling.NEAREST)
        return Sample(
            preprocess_image(query, size),
            np.stack([preprocess_image(image, size) for image, _ in shots]),
            np.stack([preprocess_mask(_is_class(mask), size, patch) for _, mask in shots]),
            np.asarray(squashed),
        )

    def _pair(self, key: str, label: int, mirrored: bool) -> tuple[UInt8, UInt8]:
        image, mask = self._dataset.image(key), self._dataset.mask(key, label)
        if mirrored:
            return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        return image, mask


def _is_class(mask: UInt8) -> UInt8:
    shown: NDArray[np.bool_] = mask == 1
    return shown.astype(np.uint8)
