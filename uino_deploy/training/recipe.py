"""Recipes: every number of a training, as frozen values that a checkpoint's provenance can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from uino_deploy.config import PRESETS, EncoderConfig, PromptConfig, UinoConfig
from uino_deploy.data.pools import PoolName
from uino_deploy.data.scenes import HANDWRITTEN, Deformation
from uino_deploy.training.schedule import Schedule

Judged = Literal["held-out", "digits", "things", "things-unseen-hand"]
Objective = Literal["classification", "compact", "episodic"]


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe; its learning rates are those before decay.

    Attributes:
        task: the objective: the encoder alone classifies things; the model segments without the
            hypercorrelation; or the whole model segments.
        steps: optimiser steps.
        muon: learning rate of the matrices in transformer blocks.
        adam: learning rate of everything else.
        deformation: how each glyph is deformed.
        constant: share of the steps before the learning rates start to fall.
    """

    task: Objective
    steps: int
    muon: float
    adam: float
    deformation: Deformation = HANDWRITTEN
    constant: float = 0.3

    @property
    def schedule(self) -> Schedule:
        """The stage's steps and learning rates, in the loop's form."""
        return Schedule(self.steps, self.adam, self.muon, constant=self.constant)


@dataclass(frozen=True)
class Recipe:
    """The numbers for training a model from scratch on procedural episodes.

    Attributes:
        name: its name for `--recipe`.
        model: the model's sizes and variant.
        episodes: episodes in a batch; each brings its support and its query scene.
        drawn_from: the pools of glyphs to train on, which take turns, each with the share of its
            sprites that are drawn as coarsely as the digits; none to train on things.
        stages: run one after the other, each with its own optimiser.
        required_miou: the gate: least mIoU on each pool or data set of classes that no step
            has seen.
        absent: the share of episodes of things whose query does not show the target.
        judged_on: episodes that the gate draws from each pool.
    """

    name: str
    model: UinoConfig
    episodes: int
    drawn_from: dict[PoolName, float]
    stages: tuple[Stage, ...]
    required_miou: dict[Judged, float]
    absent: float = 0.0
    judged_on: int = 1000

    def shortened(self, steps: int) -> Recipe:
        """Return the recipe with at most `steps` steps in each stage."""
        stages = tuple(replace(each, steps=min(steps, each.steps)) for each in self.stages)
        return replace(self, stages=stages)


SMALL = replace(
    PRESETS["tiny"],
    image_size=168,
    encoder=EncoderConfig(128, 6, 4, 2, (3, 4, 5, 6), pretrained_grid=12),
    prompt=PromptConfig(pool=2, channels=(8, 16, 32), head_channels=64),
)
"""The least shape in which every part can matter to the mask: plane norms see 16 elements a group
or more, and 9 and 4 support cells are left to scan."""

RECIPES = {
    "demo": Recipe(
        name="demo",
        model=PRESETS["tiny"],
        episodes=16,
        drawn_from={"base": 0.25, "invented": 0.4},
        stages=(
            Stage("classification", steps=6000, muon=0.02, adam=3e-3),
            Stage("episodic", steps=5000, muon=0.01, adam=1e-3),
        ),
        required_miou={"held-out": 72.0, "digits": 53.0},
    ),
    "things": Recipe(
        name="things",
        model=SMALL,
        episodes=16,
        drawn_from={},
        absent=0.15,
        stages=(
            Stage("classification", steps=4000, muon=0.02, adam=3e-3),
            Stage("compact", steps=2500, muon=0.01, adam=1e-3),
            Stage("episodic", steps=2500, muon=0.01, adam=1e-3),
        ),
        required_miou={"things": 60.0, "things-unseen-hand": 60.0},
    ),
}
