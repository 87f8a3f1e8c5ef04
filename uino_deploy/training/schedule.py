"""Steps and learning rates: those of one stage, and the options of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]

ABSENT = 0.15
"""Share of the training episodes whose query does not show the target."""


@dataclass(frozen=True)
class Schedule:
    """The steps of one stage and their learning rates.

    Attributes:
        steps: optimiser steps.
        learning_rate: AdamW's peak learning rate.
        muon_rate: Muon's peak learning rate, for the matrices of transformer blocks; None
            leaves every parameter to AdamW.
        warmup: steps over which the rates rise from zero, at most half of all.
        constant: share of the remaining steps before the rates follow half a cosine to zero.
    """

    steps: int
    learning_rate: float
    muon_rate: float | None = None
    warmup: int = 0
    constant: float = 0.0

    def factor(self, step: int) -> float:
        """Return the factor on the learning rates in a step, counted from 0."""
        warmup = min(self.warmup, self.steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        falling = max(0.0, (done - self.constant) / (1 - self.constant))
        return 0.5 * (1 + math.cos(math.pi * falling))


@dataclass(frozen=True)
class RunOptions:
    """The options that distillation and episodic training share.

    Attributes:
        batch: images or episodes per step, summed over processes.
        lr: AdamW's peak learning rate.
        warmup: steps over which it rises from zero; half a cosine brings it back.
        precision: "bf16" computes matrix products and convolutions in bfloat16.
        save_every: steps between two saves; a killed run loses at most this many.
        seed: selects all random draws.
    """

    batch: int
    lr: float
    warmup: int = 100
    precision: Precision = "fp32"
    save_every: int = 200
    seed: int = 0

    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of a stage with `steps` steps."""
        return Schedule(steps, self.lr, warmup=self.warmup)

    def settings(self) -> dict[str, Any]:
        """Return the options that affect the result, by name."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}


DISTILLATION = RunOptions(batch=16, lr=1e-3)
"""The default options of `distill`."""

EPISODIC = RunOptions(batch=8, lr=1e-4)
"""The default options of `train`."""
