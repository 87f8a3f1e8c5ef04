"""Recipes: every number of a training, as frozen values that a checkpoint's provenance can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from uino_deploy.config import Variant
from uino_deploy.data.pools import PoolName
from uino_deploy.data.scenes import HANDWRITTEN, Deformation

Task = Literal["classification", "episodic"]


@dataclass(frozen=True)
class Stage:
    """One stage of training; the learning rates are those before the decay.

    Attributes:
        task: the encoder alone classifying glyphs, or the whole model segmenting.
        steps: optimiser steps.
        muon: learning rate of the matrices in transformer blocks.
        adam: learning rate of everything else.
        deformation: of the glyphs.
        constant: share of the steps before the learning rates start to fall.
    """

    task: Task
    steps: int
    muon: float
    adam: float
    deformation: Deformation = HANDWRITTEN
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
        drawn_from: the pools of classes to train on, which take turns, and of each the share of
            sprites that are drawn as coarsely as the digits.
        stages: one after the other, each with optimisers of its own.
        required_miou: the gate: least mIoU of every pool of classes that no step has seen.
        judged_on: episodes of each pool that the gate draws.
    """

    name: str
    preset: str
    variant: Variant
    episodes: int
    drawn_from: dict[PoolName, float]
    stages: tuple[Stage, ...]
    required_miou: dict[PoolName, float]
    judged_on: int = 1000

    def shortened(self, steps: int) -> Recipe:
        """Return the recipe with at most `steps` steps in each stage."""
        stages = tuple(replace(each, steps=min(steps, each.steps)) for each in self.stages)
        return replace(self, stages=stages)


RECIPES = {
    "demo": Recipe(
        name="demo",
        preset="tiny",
        variant="full",
        episodes=16,
        drawn_from={"base": 0.25, "invented": 0.4},
        stages=(
            Stage("classification", steps=6000, muon=0.02, adam=3e-3),
            Stage("episodic", steps=5000, muon=0.01, adam=1e-3),
        ),
        required_miou={"held-out": 72.0, "digits": 53.0},
    )
}
