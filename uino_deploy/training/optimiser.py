"""The optimisers: Muon for the matrices of transformer blocks, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn

from uino_deploy.training.muon import Muon
from uino_deploy.training.recipe import Stage

_MATRIX_HOMES = ("encoder.blocks.", "adapter.blocks.", "decoder.transformer.")


class Optimiser:
    """Both optimisers under one learning-rate schedule.

    Args:
        modules: what to train, by name.
        stage: learning rates and their schedule.
    """

    def __init__(self, modules: dict[str, nn.Module], stage: Stage) -> None:
        named = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self.matrices = [
            parameter
            for name, parameter in named.items()
            if parameter.ndim == 2 and name.startswith(_MATRIX_HOMES)
        ]
        chosen = {id(parameter) for parameter in self.matrices}
        self.others = [p for p in named.values() if id(p) not in chosen]
        self._optimisers: tuple[torch.optim.Optimizer, ...] = (
            Muon(self.matrices, lr=stage.muon),
            torch.optim.AdamW(self.others, lr=stage.adam, weight_decay=0.01, fused=True),
        )
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, stage.factor)
            for optimiser in self._optimisers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """Follow the gradient of a loss by one step."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()
