"""Episodic training on a data set: the encoder is frozen, the prompts and the decoder learn.

Source: UINO-FSS (arXiv 2504.15669): episodes of the base classes, BCE and Dice on the query's mask.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uino_deploy.config import Variant
from uino_deploy.data.dataset import Dataset
from uino_deploy.data.open import DatasetName, open_dataset
from uino_deploy.data.parts import Halves, hold_out
from uino_deploy.errors import InputError
from uino_deploy.images import IGNORED
from uino_deploy.model.assembly import Assembly
from uino_deploy.model.segmenter import UinoFSS, parameter_counts
from uino_deploy.training.augmentation import Change, draw_change
from uino_deploy.training.judgement import Judgement, advice, judge
from uino_deploy.training.loop import Task, Validation
from uino_deploy.training.losses import mask_loss
from uino_deploy.training.processes import Processes, join_processes
from uino_deploy.training.reporting import LOGGING, Reporter, Silence
from uino_deploy.training.results_page import write_results
from uino_deploy.training.run_folder import last_losses, load_state, prepared_folder, read_log
from uino_deploy.training.runs import initial_settings, train_parts
from uino_deploy.training.samples import Sample, load_sample, segment_samples
from uino_deploy.training.schedule import ABSENT, EPISODIC, RunOptions
from uino_deploy.training.token_cache import TokenSource, place_to_keep
from uino_deploy.training.validation import Held, draw_held, validation_miou

_EVERY = 100  # steps between two validations
_TOKENS = "tokens"  # the folder of kept tokens in a run's folder
_IN_FOLDERS = {"pascal", "coco", "fss1000", "folder"}
_READERS = 4  # threads that decode and resize images

LEARNING: dict[Variant, tuple[str, ...]] = {
    "comp-star": ("prompt_generator",),
    "comp": ("prompt_generator", "decoder"),
    "full": ("prompt_generator", "decoder"),
    "cp4d": ("prompt_generator", "decoder"),
}
"""The parts of each variant that the paper trains; encoder and distilled adapter are frozen."""


@dataclass(frozen=True)
class Judging:
    """How a training on a data set is judged on images or classes that it does not learn from.

    Attributes:
        every: steps between two validations; 0 for none; None for 100 on a "folder" that has
            enough images, and none on other data sets.
        patience: validations without a new best after which the training stops; 0 for never.
        episodes: at most so many, the same each time.
    """

    every: int | None = None
    patience: int = 10
    episodes: int = 40


AUTOMATIC = Judging()


@dataclass(frozen=True)
class EpisodicResult:
    """The result of `train`.

    Attributes:
        checkpoint: path of the trained model: the best state, if there was a validation.
        parameters: number of parameters that learned.
        learned: names of the parts that learned.
        loss: mean loss over the last tenth of the steps.
        settings: everything that the result depends on.
        steps: steps trained; fewer than asked for after an early stop.
        best_step: the steps after which the checkpoint's state was reached; None without
            validation.
        judgement: the figures of `Judgement`, on the held-out fold if there is one, else on the
            validation's episodes; None without validation.
        beats_baselines: whether the model is better than simple methods; None without validation.
        sentence: the model and the best simple method in a line; empty without validation.
        advice: what to try if it is not.
        page: path of the page with the curves and pictures; None if there is none.
    """

    checkpoint: Path
    parameters: int
    learned: tuple[str, ...]
    loss: float
    settings: dict[str, Any]
    steps: int
    best_step: int | None = None
    judgement: dict[str, Any] | None = None
    beats_baselines: bool | None = None
    sentence: str = ""
    advice: tuple[str, ...] = ()
    page: Path | None = None


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
    absent: float | None = None,
    augment: bool = False,
    judging: Judging = AUTOMATIC,
    cache: Path | None = None,
    cache_limit: int = 20 * 10**9,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter = LOGGING,
) -> EpisodicResult:
    """Train a model on a data set's base classes, as `uino-deploy train --dataset` does.

    The encoder is frozen, and so are the adapter unless `train_adapter` is set and the decoder of
    the variant comp-star. A killed run continues with `resume` and ends with the result of an
    uninterrupted run. Under `torchrun` the processes share each batch, and the first one writes.

    Every fifth image (or class, of ten or more) is held out to judge the model while it learns. The
    best state remains, the first one included. It is compared with simple methods on the held-out
    fold, or without one on the images that chose it, in `results.html`.

    Args:
        assembly: the model to start from, from `model.assembly`; trained in place.
        dataset: the data set's name.
        folder: the run's folder; the result is `model.safetensors` in it.
        options: batch, learning rate, seed and the like.
        data: the data set's folder; None for the drawn one, "demo".
        fold: the held-out fold; None if the data set has no folds.
        shots: support images per episode.
        steps: optimiser steps, at most.
        train_adapter: also train the adapter.
        mirror: mirror half of the images; not for text.
        absent: share of the episodes whose query does not show the target, so that the predicted
            IoU learns to fall to 0; None for `schedule.ABSENT`, and 0 for a data set of one class.
        augment: cut and recolour images at random; then no tokens are kept.
        judging: how to judge the model.
        cache: keeps the encoder's tokens of images; None for `tokens` in the run's folder.
        cache_limit: bytes that they may take; 0 keeps none.
        resume: continue the run in the folder.
        force: replace the run in the folder.
        reporter: where messages go; by default to Python's logger `uino_deploy.training`.

    Raises:
        InputError: the data set's layout is wrong, it has no images for `absent` or too few for
            `judging`, or the folder holds a run with other settings.
        OutputExists: the folder is not empty, and neither `resume` nor `force` is given.
        CheckFailed: the loss is not finite, or a frozen part changed.
    """
    model = assembly.model
    learning = LEARNING[model.config.variant] + (("adapter",) if train_adapter else ())
    opened = open_dataset(dataset, data, fold, "train")
    halves = _halves(opened, judging, shots)
    learnt = opened if halves is None else halves.learnt
    alone = len(learnt.shown_labels()) < 2
    absent = (0.0 if alone else ABSENT) if absent is None else absent
    _check_absent(absent, alone)
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
        "absent": absent,
        "augment": augment,
        "validate_every": _every(judging) if halves else 0,
        "patience": judging.patience,
        "validation_episodes": judging.episodes,
    }
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        if not processes.first:
            reporter = Silence()
        stack.enter_context(prepared_folder(folder, settings, resume, force, processes))
        _tell(reporter, model, opened, learning, alone)
        if halves is None and opened.name == "folder" and judging.every is None:
            reporter.warn(
                "too few images to hold any out: the training is not judged, and its last state is "
                "the result; compare it with `uino-deploy evaluate`"
            )
        if "adapter" in assembly.untrained and not train_adapter:
            reporter.warn(
                "the adapter is frozen but was never distilled; use --train-adapter, or "
                "run `uino-deploy distill` first"
            )
        before = copy.deepcopy(model) if halves else model
        model.to(processes.device)
        place = None
        if data is not None and not augment:
            place = place_to_keep(
                model.config,
                _images(opened) * (2 if mirror else 1),
                cache or folder / _TOKENS,
                cache_limit,
                reporter,
            )
        source = TokenSource(model.encoder, model.config, options.precision, place, reporter)
        task = EpisodicTraining(
            model, learning, learnt, shots, options.batch, options.seed, processes, mirror, absent,
            augment, source,
        )  # fmt: skip
        held, validation = None, None
        if halves is not None:
            held = draw_held(halves.held_out, halves.words, shots, judging.episodes)
            validation = _validation(model, held, source, judging, reporter)
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
            validation,
        )
        counts, (loss,) = parameter_counts(model), last_losses(folder, 1)
        trained = EpisodicResult(
            checkpoint, sum(counts[part] for part in learning), learning, loss, settings,
            read_log(folder)[-1].step,
        )  # fmt: skip
        if held is None or not processes.first:
            return trained
        model.to(processes.device)
        final = _unseen(dataset, data, fold, shots, judging) or held
        judgement = judge(before.to(processes.device), model, final, reporter)
        left = [part for part in assembly.untrained if part not in learning]
        return _judged(trained, judgement, final, held.words, model, folder, left, reporter)


def _tell(
    reporter: Reporter, model: UinoFSS, dataset: Dataset, learning: Sequence[str], alone: bool
) -> None:
    """Say what learns from what."""
    counts = parameter_counts(model)
    parameters = sum(counts[part] for part in learning)
    reporter.log(
        f"{model.config.variant}: {parameters:,} parameters ({parameters / 1e6:.2f} M) learn "
        f"from {len(dataset.classes)} of the data set's classes: {', '.join(learning)}"
    )
    if alone:
        reporter.log(
            "one class: no episode lacks the target, so the model does not learn to say so"
        )


def _halves(opened: Dataset, judging: Judging, shots: int) -> Halves | None:
    """Hold out a validation, if one is wanted and possible."""
    if not (opened.name == "folder" if judging.every is None else judging.every):
        return None
    if opened.name not in _IN_FOLDERS:
        raise InputError(
            f"data set {opened.name} is drawn, and its validation too", "leave out --validate-every"
        )
    halves = hold_out(opened, shots)
    if halves is None and judging.every is not None:
        raise InputError(
            f"data set {opened.name} has too few images for a validation",
            f"every fifth is held out, and each part of a class needs {shots + 1}: add images, or "
            "give --validate-every 0",
        )
    return halves


def _every(judging: Judging) -> int:
    return _EVERY if judging.every is None else judging.every


def _unseen(
    name: DatasetName, data: Path | None, fold: int | None, shots: int, judging: Judging
) -> Held | None:
    """Return episodes of the held-out fold; None without a fold, or if it has too few images."""
    if fold is None:
        return None
    test = open_dataset(name, data, fold, "test")
    shown = test.shown_labels()
    if any(len(test.images(label)) <= shots for label in shown):
        return None
    what = f"{len(shown)} classes" if name != "folder" else f"{_images(test)} images"
    return draw_held(test, f"{what} of fold {fold}", shots, judging.episodes)


def _images(dataset: Dataset) -> int:
    return len({key for label in dataset.shown_labels() for key in dataset.images(label)})


def _validation(
    model: UinoFSS, held: Held, source: TokenSource, judging: Judging, reporter: Reporter
) -> Validation:
    stop = f"; after {judging.patience} without a new best, training stops"
    reporter.log(
        f"validation: {held.words} held out, {len(held.episodes)} episodes every "
        f"{_every(judging)} steps{stop if judging.patience else ''}; the best state is kept"
    )
    return Validation(
        _every(judging), judging.patience, lambda: validation_miou(model, held, source)
    )


def _judged(
    trained: EpisodicResult,
    judgement: Judgement,
    final: Held,
    validation: str,
    model: UinoFSS,
    folder: Path,
    untrained: Sequence[str],
    reporter: Reporter,
) -> EpisodicResult:
    """Add a judgement to a result, and write both into the run's folder."""
    best = load_state(folder).best
    assert best is not None
    beats, settings = judgement.beats_baselines, trained.settings
    tried = [] if beats else advice(settings["shots"], settings["augment"], untrained)
    page = write_results(folder, judgement, final, validation, model, best.step, tried, reporter)
    return replace(
        trained,
        best_step=best.step,
        judgement=judgement.document,
        beats_baselines=beats,
        sentence=judgement.sentence,
        advice=tuple(tried),
        page=page,
    )


class EpisodicTraining(Task):
    """The task of segmenting a data set's classes from a few shots.

    Drawing and all changes of images depend only on the seed and the episode's number.

    Args:
        model: every part outside `learning` is frozen.
        learning: names of the parts that learn.
        dataset: the base classes.
        shots: support images per episode.
        batch: episodes per step, summed over processes.
        seed: selects the sequence of episodes.
        processes: this process's place among all.
        mirror: mirror half of the images; not for text or anything else with a left and a right.
        absent: share of the episodes whose query does not show the target.
        augment: also cut and recolour images at random.
        source: gives the images' tokens; None computes them in fp32 and keeps none.

    Attributes:
        source: gives the images' tokens.
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
        absent: float = 0.0,
        augment: bool = False,
        source: TokenSource | None = None,
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
        self._absent = absent
        self._augment = augment
        self.source = source or TokenSource(model.encoder, model.config, "fp32", None, LOGGING)
        self._readers = ThreadPoolExecutor(_READERS)

    def forward(self, stage: int, step: int) -> Tensor:
        """Return the loss on this process's share of a step's episodes."""
        first = step * self._batch
        chosen = self._processes.share(list(range(first, first + self._batch)))
        samples = Sample(
            *(
                torch.stack(each).to(self._processes.device)
                for each in zip(*self._readers.map(self.sample, chosen), strict=True)
            )
        )
        logits, iou = segment_samples(self.model, samples)
        truth = samples.truth
        return mask_loss(logits, iou, (truth == 1).float(), counted=truth != IGNORED)

    def sample(self, index: int) -> Sample:
        """Read an episode of the training's endless list."""
        listed = self._dataset.episode(self._seed, index, self._shots)
        rng = np.random.default_rng([self._seed, index, 1])
        *chances, lacking = rng.random(self._shots + 2)
        if lacking < self._absent:
            listed = self._dataset.absent(listed, self._seed, index)
        changes = [Change(bool(chance < self._mirrored)) for chance in chances]
        if self._augment:
            masks = [self._dataset.mask(key, listed.label) for key in listed.support]
            masks.append(self._dataset.query(listed)[1])
            changes = [
                draw_change(rng, change.mirror, mask)
                for change, mask in zip(changes, masks, strict=True)
            ]
        return load_sample(self._dataset, listed, self.source, self.model.config, changes)


def _check_absent(absent: float, alone: bool) -> None:
    """Refuse a share that is none, or that a data set of one class cannot have."""
    if not 0 <= absent < 1:
        raise InputError(f"the share of absent targets is {absent:g}", "give 0 or more, below 1")
    if absent and alone:
        raise InputError(
            "the data set has one class, so every image shows the target",
            "leave out --absent, or add a class",
        )
