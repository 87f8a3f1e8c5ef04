"""A training loop that can be killed at any moment and resumed to the same result.

A step depends only on its number and the weights: a task draws a batch by the step's
number, never from a running random state. The state (weights, optimiser, step) is written whole or
not at all; a resumed training repeats the steps since the last save and ends as if never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from uino_deploy.errors import CheckFailed
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.processes import Processes, synchronise_batch_norms
from uino_deploy.training.reporting import Observer, StepProgress, ignore
from uino_deploy.training.run_folder import Best, State, cut_log, load_state, open_log, save_state
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


@dataclass(frozen=True)
class Validation:
    """How a training of one stage is judged while it runs; its best state is what remains.

    Attributes:
        every: steps between two judgements; there is one before the first step and after the last.
        patience: judgements without a new best after which the training stops; 0 for never.
        miou: returns the validation mIoU of the task's model in per cent, the same on every process
            but for rounding.
    """

    every: int
    patience: int
    miou: Callable[[], float]


class TrainingLoop:
    """The loop over a task's stages, each with its own optimiser, with its state in a folder.

    Args:
        task: the task to train; a module on the processes' device.
        schedules: one for each stage.
        folder: exists; holds the state and the log.
        processes: this process's place among all.
        save_every: steps between two saves; a killed run loses at most this many.
        precision: "bf16" computes matrix products and convolutions in bfloat16.
        validation: judges the training, if given.
    """

    def __init__(
        self,
        task: Task,
        schedules: Sequence[Schedule],
        folder: Path,
        processes: Processes,
        save_every: int = 200,
        precision: Precision = "fp32",
        validation: Validation | None = None,
    ) -> None:
        self.task = task
        self.trained = task.trained
        self._schedules = schedules
        self._folder = folder
        self._processes = processes
        self._save_every = save_every
        self._precision = precision
        self._validation = validation
        self._best: Best | None = None
        self._miou: float | None = None
        if processes.count > 1:
            synchronise_batch_norms(self.trained)

    def run(self, observe: Observer = ignore) -> None:
        """Train to the end, from the folder's state if it has one; leave the best state if judged.

        Args:
            observe: called after every step.

        Raises:
            InputError: the folder's state is damaged or of another version.
            CheckFailed: the loss is not finite.
        """
        state = load_state(self._folder)
        if state.model:
            self.trained.load_state_dict(state.model)
        self._best = state.best
        self._miou = None if state.best is None else state.best.miou
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
        if self._best is not None:
            self.trained.load_state_dict(self._best.model)

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
            if first == 0 and self._is_judged(0, schedule.steps):
                write([stage, 0, "", "", self._judge(0)])
            for step in range(first, schedule.steps):
                loss = self._step(parallel, optimiser, stage, step)
                done = step + 1
                rate = schedule.learning_rate * schedule.factor(step)
                miou = self._judge(done) if self._is_judged(done, schedule.steps) else ""
                write([stage, done, f"{loss:.6g}", f"{rate:.4g}", miou])
                speed = (time.monotonic() - began) / (done - first)
                observe(self._progress(stage, done, loss, speed))
                if self._is_out_of_patience(done):
                    break
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

    def _is_judged(self, done: int, steps: int) -> bool:
        return self._validation is not None and (
            done % self._validation.every == 0 or done == steps
        )

    def _judge(self, done: int) -> str:
        """Validate the model after so many steps, keep it if it is the best; return its mIoU."""
        assert self._validation is not None
        self.task.eval()
        with torch.no_grad(), self._autocast():
            own = torch.tensor(self._validation.miou(), device=self._processes.device)
        self.task.train()
        self._miou = float(self._processes.mean(own))
        if self._best is None or self._miou > self._best.miou:
            state = {name: each.cpu().clone() for name, each in self.trained.state_dict().items()}
            self._best = Best(done, self._miou, state)
        return f"{self._miou:.4f}"

    def _is_out_of_patience(self, done: int) -> bool:
        if self._validation is None or self._best is None or not self._validation.patience:
            return False
        return done - self._best.step >= self._validation.patience * self._validation.every

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._processes.device.type, torch.bfloat16)

    def _progress(
        self, stage: int, done: int, loss: float, seconds_per_step: float
    ) -> StepProgress:
        steps = self._schedules[stage].steps
        left = steps - done + sum(schedule.steps for schedule in self._schedules[stage + 1 :])
        best = None if self._best is None else (self._best.miou, self._best.step)
        seconds = seconds_per_step * left
        stages = len(self._schedules)
        return StepProgress(stage, stages, done, steps, loss, seconds, self._miou, best)

    def _save(self, stage: int, step: int, optimiser: Optimiser | None = None) -> None:
        """Write the state before a step; the first step of a stage has no optimiser state yet."""
        if self._processes.first:
            averages = {} if optimiser is None else optimiser.state()
            state = State(stage, step, self.trained.state_dict(), averages, self._best)
            save_state(self._folder, state)
        self._processes.wait()
