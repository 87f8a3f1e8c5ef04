"""Training from scratch by a recipe: the encoder classifies, then the whole model segments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from uino_deploy.config import UinoConfig
from uino_deploy.evaluation.episodes import EVALUATION_SEED, Evaluation
from uino_deploy.files import atomic_file
from uino_deploy.model.checkpoint import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.allocator import keep_freed_memory
from uino_deploy.training.batches import Batch, Batches
from uino_deploy.training.gate import measure, shortfalls
from uino_deploy.training.loop import Task, TrainingLoop
from uino_deploy.training.losses import Classifier, SimilarityReadout, mask_loss
from uino_deploy.training.processes import ALONE
from uino_deploy.training.provenance import describe
from uino_deploy.training.recipe import Recipe
from uino_deploy.training.reporting import LOGGING, Observer, Reporter, ignore, narrator
from uino_deploy.workspace import work_folder


@dataclass(frozen=True)
class RecipeResult:
    """The result of `train_recipe`.

    Attributes:
        checkpoint: path of the trained model.
        provenance: how the checkpoint was made, as it records.
        measured: the evaluation on each of the gate's pools; empty if the model was not evaluated.
        shortfalls: a line for each pool below the required mIoU; None if it was not evaluated.
    """

    checkpoint: Path
    provenance: dict[str, Any]
    measured: dict[str, Evaluation]
    shortfalls: list[str] | None


def train_recipe(
    recipe: Recipe,
    path: Path,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    force: bool = False,
    reporter: Reporter = LOGGING,
) -> RecipeResult:
    """Train a model by a recipe, evaluate it, and save it, as `uino-deploy train --recipe` does.

    A model below the required mIoU is saved as well.

    Args:
        recipe: the numbers, from `recipe.RECIPES`.
        path: the checkpoint to write, weights in float16.
        seed: selects the initial weights and the episodes.
        max_steps: most steps per stage; the model is then not evaluated.
        force: replace the checkpoint if it exists.
        reporter: where messages go; by default to Python's logger `uino_deploy.training`.

    Raises:
        OutputExists: the checkpoint exists, and `force` is not given; nothing was trained.
        CheckFailed: the loss is not finite.
    """
    judge = max_steps is None
    if max_steps is not None:
        recipe = recipe.shortened(max_steps)
    # Around the training as well: an existing output is refused before it, not after.
    with atomic_file(path, force) as temporary:
        started = time.monotonic()
        with work_folder(None, "uino-training") as folder:
            model = train_from_scratch(recipe, seed, folder, observe=narrator(reporter))
        seconds = time.monotonic() - started
        # The evaluated weights are the saved ones, rounded to float16.
        model = model.half().float()
        measured = _judge(model, recipe, reporter) if judge else {}
        provenance = _provenance(recipe, seed, seconds, measured)
        save_checkpoint(model, temporary, provenance, torch.float16)
    failures = shortfalls(recipe, measured) if judge else None
    return RecipeResult(path, provenance, measured, failures)


def _judge(model: UinoFSS, recipe: Recipe, reporter: Reporter) -> dict[str, Evaluation]:
    with reporter.progress("judging", recipe.judged_on * len(recipe.required_miou)) as done:
        return measure(model, recipe, done)


def _provenance(
    recipe: Recipe, seed: int, seconds: float, measured: dict[str, Evaluation]
) -> dict[str, Any]:
    facts = {
        "recipe": asdict(recipe),
        "seed": seed,
        "seconds": round(seconds),
        "dataset": "procedural scenes of glyphs, base classes (uino_deploy/data)",
        "evaluation_seed": EVALUATION_SEED,
        "measured": {name: asdict(evaluation) for name, evaluation in measured.items()},
    }
    command = f"uino-deploy train --recipe {recipe.name} --seed {seed}"
    return describe(command, facts, ("matplotlib", "scikit-learn"))


def train_from_scratch(
    recipe: Recipe,
    seed: int,
    folder: Path,
    config: UinoConfig | None = None,
    observe: Observer = ignore,
) -> UinoFSS:
    """Return a model trained by a recipe, in evaluation mode.

    Args:
        recipe: the numbers.
        seed: selects the initial weights and the episodes.
        folder: the run's folder; a killed run continues from its saved state.
        config: the model's sizes; the recipe's if None.
        observe: called after every step.

    Raises:
        CheckFailed: the loss is not finite.
    """
    keep_freed_memory()
    task = FromScratch(recipe, seed, config)
    folder.mkdir(parents=True, exist_ok=True)
    TrainingLoop(task, [stage.schedule for stage in recipe.stages], folder, ALONE).run(observe)
    return task.model.eval()


class FromScratch(Task):
    """The task of a recipe: a new model learns from drawn scenes.

    Args:
        recipe: the numbers.
        seed: selects the initial weights and the episodes.
        config: the model's sizes; the recipe's if None.
    """

    def __init__(self, recipe: Recipe, seed: int, config: UinoConfig | None = None) -> None:
        config = config or recipe.model
        batches = Batches(config, recipe, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = UinoFSS(config)
            classifier = Classifier(config.encoder.width, batches.classes, batches.families)
        readout = SimilarityReadout()
        parts = {"encoder": model.encoder, "classifier": classifier, **dict(model.named_children())}
        super().__init__({**parts, "readout": readout})
        self.model = model
        self.classifier = classifier
        self.readout = readout
        self.batches = batches
        self._stages = recipe.stages
        self._next_batches: Iterator[Batch] = iter(())
        self._next_number: int | None = None

    def forward(self, stage: int, step: int) -> Tensor:
        """Return the loss of a step's batch."""
        batch = self._batch(sum(each.steps for each in self._stages[:stage]) + step)
        # PyTorch's fused attention is slow on a CPU: its backward took 12 ms a block in bfloat16,
        # the written-out form 2.
        with sdpa_kernel(SDPBackend.MATH):
            objective = self._stages[stage].task
            if objective == "classification":
                return self.classification_loss(batch)
            return self.episodic_loss(batch, correlate=objective == "episodic")

    def _batch(self, number: int) -> Batch:
        if number != self._next_number:
            self._next_batches = self.batches.drawn_ahead(number)
        self._next_number = number + 1
        return next(self._next_batches)

    def classification_loss(self, batch: Batch) -> Tensor:
        """Return the loss of things classified by the encoder's features."""
        with torch.autocast("cpu", torch.bfloat16):
            _, deep = self.model.encoder(batch.images)
        return self.classifier.loss(deep[:, -1], batch)

    def episodic_loss(self, batch: Batch, correlate: bool = True) -> Tensor:
        """Return the loss of mask, predicted IoU, prototype map, and a share of classification.

        Args:
            batch: the episodes.
            correlate: with the hypercorrelation, which takes half of a step's time.
        """
        prompts = self.model.prompt_generator
        target = batch.shares[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            early, deep = self.model.encoder(batch.images)
            (_, query_early), (support_deep, query_deep) = early.chunk(2), deep.chunk(2)
            support_target, query_target = target.chunk(2)
            support = prompts.support_features(support_deep[:, None], support_target[:, None])
            similarity = prompts.similarity_map(query_deep, support.prototypes)
            dense = prompts.similarity_prompt(similarity)
            if correlate and prompts.hypercorrelation is not None:
                dense = dense + prompts.hypercorrelation(query_deep, support.deep, support.weight)
            embedding = self.model.adapter(query_early)
            logits, iou = self.model.decoder(embedding, support.sparse, dense)
        return (
            mask_loss(logits, iou, batch.truth)
            + 0.5 * self.readout.loss(similarity, query_target)
            + 0.3 * self.classifier.loss(deep[:, -1], batch)
        )
