"""Trains a model from nothing: the encoder as a classifier, then everything as a segmenter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from uino_deploy.config import UinoConfig
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.allocator import keep_freed_memory
from uino_deploy.training.batches import Batch, Batches
from uino_deploy.training.losses import GlyphClassifier, SimilarityReadout, mask_loss
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.recipe import Recipe, Stage


@dataclass(frozen=True)
class Progress:
    """Where a training is after a step.

    Attributes:
        stage: its number, from 1.
        step: steps of this stage done.
        steps: steps of this stage in all.
        loss: the step's loss.
        seconds: since this stage began.
    """

    stage: int
    step: int
    steps: int
    loss: float
    seconds: float


Observer = Callable[[Progress, UinoFSS], None]


class Trainer:
    """One training; `run` returns the trained model in inference mode.

    Args:
        recipe: the numbers.
        seed: of the initial weights and of the episodes.
        observe: called after every step.
        config: of the model; the recipe's preset and variant by default.
    """

    def __init__(
        self, recipe: Recipe, seed: int, observe: Observer, config: UinoConfig | None = None
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(seed)
        self.config = config or UinoConfig.from_preset(recipe.preset, recipe.variant)
        self.model = UinoFSS(self.config)
        self.batches = Batches(self.config, recipe, seed)
        classes = sum(len(pool.labels) for pool in self.batches.pools)
        self.classifier = GlyphClassifier(self.config.encoder.width, classes)
        self.readout = SimilarityReadout()
        self._recipe = recipe
        self._observe = observe

    def run(self) -> UinoFSS:
        """Go through all stages."""
        self.model.train()
        for number, stage in enumerate(self._recipe.stages, start=1):
            self.run_stage(number, stage)
        return self.model.eval()

    def run_stage(self, number: int, stage: Stage) -> None:
        """Train what a stage trains, with optimisers of its own.

        Args:
            number: which of the recipe's stages it is, from 1.
            stage: its numbers.
        """
        self.readout = SimilarityReadout()
        modules = {"encoder": self.model.encoder, "classifier": self.classifier}
        loss_of = self.classification_loss
        if stage.task == "episodic":
            modules |= dict(self.model.named_children()) | {"readout": self.readout}
            loss_of = self.episodic_loss
        optimiser = Optimiser(modules, stage)
        began = time.monotonic()
        for step, batch in enumerate(self.batches.of_stage(number), start=1):
            # PyTorch's fused attention is slow on a processor: its backward took 12 ms a block in
            # bfloat16, the written-out form 2.
            with sdpa_kernel(SDPBackend.MATH):
                loss = loss_of(batch)
                optimiser.step(loss)
            seconds = time.monotonic() - began
            self._observe(Progress(number, step, stage.steps, loss.item(), seconds), self.model)

    def classification_loss(self, batch: Batch) -> torch.Tensor:
        """Stage 1's loss."""
        with torch.autocast("cpu", torch.bfloat16):
            _, deep = self.model.encoder(batch.images)
        return self.classifier.loss(deep[:, -1], batch)

    def episodic_loss(self, batch: Batch) -> torch.Tensor:
        """Stage 2's loss: mask, predicted IoU, prototype map, and a share of stage 1's."""
        prompts = self.model.prompt_generator
        target = batch.shares[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            early, deep = self.model.encoder(batch.images)
            (_, query_early), (support_deep, query_deep) = early.chunk(2), deep.chunk(2)
            support_target, query_target = target.chunk(2)
            support = prompts.support_features(support_deep[:, None], support_target[:, None])
            dense = prompts(query_deep, support.deep, support.weight, support.prototypes)
            embedding = self.model.adapter(query_early)
            logits, iou = self.model.decoder(embedding, support.sparse, dense)
            similarity = prompts.similarity_map(query_deep, support.prototypes)
        return (
            mask_loss(logits, iou, batch.truth)
            + 0.5 * self.readout.loss(similarity, query_target)
            + 0.3 * self.classifier.loss(deep[:, -1], batch)
        )
