"""The optimiser: AdamW, and Muon for the matrices of transformer blocks if scheduled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uino_deploy.training.muon import Muon
from uino_deploy.training.schedule import Schedule

_MATRIX_HOMES = ("encoder.blocks.", "adapter.blocks.", "decoder.transformer.")
_WEIGHT_DECAY = 0.01
_HIGHEST_NORM = 1.0  # of AdamW's gradient; the length of Muon's does not matter


class Optimiser:
    """AdamW and Muon under one schedule.

    Without Muon, AdamW decays weights with two or more dimensions; beside Muon it decays all of
    its own, in PyTorch's fused form.

    Args:
        parameters: the parameters to train, by name.
        schedule: the learning rates.

    Attributes:
        matrices: Muon's parameters.
        others: AdamW's parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], schedule: Schedule) -> None:
        self._schedule = schedule
        self.matrices = [
            parameter
            for name, parameter in parameters.items()
            if schedule.muon_rate is not None
            and parameter.ndim == 2
            and name.startswith(_MATRIX_HOMES)
        ]
        chosen = {id(parameter) for parameter in self.matrices}
        self.others = [p for p in parameters.values() if id(p) not in chosen]
        rate, muon_rate = schedule.learning_rate, schedule.muon_rate
        self._optimisers: list[tuple[torch.optim.Optimizer, float]]
        if muon_rate is None:
            self._optimisers = [(_adamw_decaying_matrices(self.others, rate), rate)]
        else:
            adamw = torch.optim.AdamW(self.others, rate, weight_decay=_WEIGHT_DECAY, fused=True)
            self._optimisers = [(adamw, rate), (Muon(self.matrices, muon_rate), muon_rate)]

    def step(self, loss: Tensor, step: int) -> None:
        """Take one step along the gradient of a loss.

        Args:
            loss: a scalar.
            step: the step's number within the schedule, from 0.
        """
        factor = self._schedule.factor(step)
        for optimiser, rate in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.others, _HIGHEST_NORM)
        for optimiser, _ in self._optimisers:
            optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Return the running averages by parameter number and name, such as `3.exp_avg`.

        AdamW's parameters are numbered first, group by group, then Muon's.
        """
        tensors: dict[str, Tensor] = {}
        first = 0
        for optimiser, _ in self._optimisers:
            for index, values in optimiser.state_dict()["state"].items():
                tensors |= {f"{first + index}.{n}": torch.as_tensor(t) for n, t in values.items()}
            first += _parameter_count(optimiser)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, value = name.partition(".")
            values.setdefault(int(number), {})[value] = tensor
        first = 0
        for optimiser, _ in self._optimisers:
            count = _parameter_count(optimiser)
            own = {i: values[first + i] for i in range(count) if first + i in values}
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": own, "param_groups": groups})
            first += count


def _adamw_decaying_matrices(parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """Return AdamW without weight decay for biases and the scales of normalisations."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, rate)


def _parameter_count(optimiser: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimiser.param_groups)
