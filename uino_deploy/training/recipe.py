"""Recipes: every number of a training, as frozen values that a checkpoint's provenance can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from uino_deploy.config import Variant
from uino_deploy.data.pools import PoolName


@dataclass(frozen=True)
class Stage:
    """One stage of training; the learning rates are those before the decay.

    Attributes:
        steps: optimiser steps.
        muon: learning rate of the matrices in transformer blocks.
        adam: learning rate of everything else.
        constant: share of the steps before the learning rates start to fall.
    """

    steps: int
    muon: float
    adam: float
    constant: float = 0.3

    def factor(self, step: int) -> float:
        """Return what the learning rates are multiplied by: constant, then half a cosine to 0."""
        done = (step / self.steps - self.constant) / (1 - self.constant)
        return 0.5 * (1 + math.cos(math.pi * max(0.0, done)))


@dataclass(frozen=True)
class Recipe:
    """How a model is trained from nothing on procedural episodes.

    Attributes:
        name: what `--recipe` calls it.
        preset: the model.
        variant: the model's variant.
        episodes: episodes in a batch; each brings its support and its query scene.
        classification: stage 1, the encoder alone, classifying glyphs.
        episodic: stage 2, the whole model, segmenting.
        required_miou: the gate: least mIoU of every pool of classes that no step has seen.
        judged_on: episodes of each pool that the gate draws.
    """

    name: str
    preset: str
    variant: Variant
    episodes: int
    classification: Stage
    episodic: Stage
    required_miou: dict[PoolName, float]
    judged_on: int = 1000

    def shortened(self, steps: int) -> Recipe:
        """Return the recipe with at most `steps` steps in each stage."""
        return replace(
            self,
            classification=replace(
                self.classification, steps=min(steps, self.classification.steps)
            ),
            episodic=replace(self.episodic, steps=min(steps, self.episodic.steps)),
        )


RECIPES = {
    "demo": Recipe(
        name="demo",
        preset="tiny",
        variant="full",
        episodes=16,
        classification=Stage(steps=2600, muon=0.02, adam=1e-3),
        episodic=Stage(steps=3600, muon=0.01, adam=1e-3),
        required_miou={"held-out": 72.0, "digits": 53.0},
    )
}
