"""A training loop that can be killed at any moment and resumed to the same result.

A step depends only on its number and the weights: a task draws a batch by the step's
number, never from a running random state. The state (weights, optimiser, step) is written whole or
not at all; a resumed training repeats the steps since the last save and ends as if never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from uino_deploy.errors import CheckFailed
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.processes import Processes, synchronise_batch_norms
from uino_deploy.training.reporting import Observer, StepProgress, ignore
from uino_deploy.training.run_folder import State, cut_log, load_state, open_log, save_state
from uino_deploy.training.schedule import Precision, Schedule

if TYPE_CHECKING:
    from typing_extensions import Self


class Task(nn.Module):
    """A training task: called with a stage and a step, it returns the loss of this process's share.

    Everything outside `trained` is frozen: it has no gradient and stays in evaluation mode.

    Args:
        trained: the modules that learn and are saved, by name.
    """

    def __init__(self, trained: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(dict(trained))

    def train(self, mode: bool = True) -> Self:
        """Set the trained modules to training mode, and the others to evaluation mode."""
        super().train(False)
        self.trained.train(mode)
        return self


class TrainingLoop:
    """The loop over a task's stages, each with its own optimiser, with its state in a folder.

    Args:
        task: the task to train; a module on the processes' device.
        schedules: one for each stage.
        folder: exists; holds the state and the log.
        processes: this process's place among all.
        save_every: steps between two saves; a killed run loses at most this many.
        precision: "bf16" computes matrix products and convolutions in bfloat16.
    """

    def __init__(
        self,
        task: Task,
        schedules: Sequence[Schedule],
        folder: Path,
        processes: Processes,
        save_every: int = 200,
        precision: Precision = "fp32",
    ) -> None:
        self.task = task
        self.trained = task.trained
        self._schedules = schedules
        self._folder = folder
        self._processes = processes
        self._save_every = save_every
        self._precision = precision
        if processes.count > 1:
            synchronise_batch_norms(self.trained)

    def run(self, observe: Observer = ignore) -> None:
        """Train to the end, from the folder's state if it has one.

        Args:
            observe: called after every step.

        Raises:
            InputError: the folder's state is damaged or of another version.
            CheckFailed: the loss is not finite.
        """
        state = load_state(self._folder)
        if state.model:
            self.trained.load_state_dict(state.model)
        if self._processes.first:
            cut_log(self._folder, state.stage, state.step)
        for stage in range(state.stage, len(self._schedules)):
            optimiser = Optimiser(dict(self.trained.named_parameters()), self._schedules[stage])
            first = 0
            if stage == state.stage:
                optimiser.load_state(state.optimiser)
                first = state.step
            self._run_stage(stage, first, optimiser, observe)
            self._save(stage + 1, 0)

    def _run_stage(self, stage: int, first: int, optimiser: Optimiser, observe: Observer) -> None:
        self.task.train()
        parallel: nn.Module = self.task
        if self._processes.count > 1:  # a decoder's other masks do not enter the loss
            parallel = DistributedDataParallel(
                self.task, find_unused_parameters=True, broadcast_buffers=False
            )
        schedule = self._schedules[stage]
        began = time.monotonic()
        with open_log(self._folder if self._processes.first else None) as write:
            for step in range(first, schedule.steps):
                loss = self._step(parallel, optimiser, stage, step)
                done = step + 1
                rate = schedule.learning_rate * schedule.factor(step)
                write([stage, done, f"{loss:.6g}", f"{rate:.4g}"])
                speed = (time.monotonic() - began) / (done - first)
                observe(self._progress(stage, done, loss, speed))
                if done % self._save_every == 0 and done < schedule.steps:
                    self._save(stage, done, optimiser)

    def _step(self, parallel: nn.Module, optimiser: Optimiser, stage: int, step: int) -> float:
        with self._autocast():
            loss = parallel(stage, step)
        value = float(self._processes.mean(loss))
        if not math.isfinite(value):
            raise CheckFailed(
                f"the loss of stage {stage + 1}, step {step + 1} is not finite",
                "lower --lr, or train with --precision fp32; the last saved state is whole",
            )
        optimiser.step(loss, step)
        return value

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._processes.device.type, torch.bfloat16)

    def _progress(
        self, stage: int, done: int, loss: float, seconds_per_step: float
    ) -> StepProgress:
        steps = self._schedules[stage].steps
        left = steps - done + sum(schedule.steps for schedule in self._schedules[stage + 1 :])
        return StepProgress(stage, len(self._schedules), done, steps, loss, seconds_per_step * left)

    def _save(self, stage: int, step: int, optimiser: Optimiser | None = None) -> None:
        """Write the state before a step; the first step of a stage has no optimiser state yet."""
        if self._processes.first:
            averages = {} if optimiser is None else optimiser.state()
            state = State(stage, step, self.trained.state_dict(), averages)
            save_state(self._folder, state)
        self._processes.wait()
