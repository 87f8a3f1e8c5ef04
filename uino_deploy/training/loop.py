"""A training that can be killed at any moment and go on to the same result, alone or in a group.

What a step does depends on its number and the weights alone: batches are drawn by the step's
number, never from a running random state. The state (weights, optimiser, step) is written whole or
not at all; a resumed training repeats the steps since the last save and ends as if never stopped.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uino_deploy.errors import CheckFailed, InputError, OutputExists
from uino_deploy.files import atomic_file
from uino_deploy.training.processes import Processes, synchronise_batch_norms

STATE, SETTINGS, LOG = "state.safetensors", "run.json", "log.csv"
FORMAT = "uino-training-state"
VERSION = "1"

if TYPE_CHECKING:
    from typing_extensions import Self

Precision = Literal["fp32", "bf16"]


class Task(nn.Module):
    """What is trained: called with a stage and a step, it returns the loss of this process's share.

    Everything outside `trained` is frozen: without gradients, and in evaluation mode.

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
class Schedule:
    """How each stage follows the gradient.

    Attributes:
        steps: of each stage.
        learning_rate: its highest value.
        warmup: steps over which it rises from nothing; half a cosine brings it back there.
        weight_decay: AdamW's, of weights with two or more dimensions.
        clip: highest norm of the gradient.
        precision: bf16 computes matrix products and convolutions in bfloat16.
    """

    steps: tuple[int, ...]
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: Precision = "fp32"

    def factor(self, stage: int, step: int) -> float:
        """Return what the learning rate is multiplied by in a stage's step, from 0."""
        steps = self.steps[stage]
        warmup = min(self.warmup, steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class Position:
    """Where a training is.

    Attributes:
        stage: from 0.
        step: steps of this stage done.
        steps: steps of this stage in all.
        loss: of the last step, over all processes.
        seconds_left: of all stages, by the speed of this stage so far.
    """

    stage: int
    step: int
    steps: int
    loss: float
    seconds_left: float


class Engine:
    """Runs a task's stages in a folder.

    Args:
        task: what is trained; a module on the processes' device.
        schedule: how.
        folder: holds the state, the log and the settings.
        processes: this process among all.
        save_every: steps between two saves; a kill costs at most so many.
    """

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        folder: Path,
        processes: Processes,
        save_every: int = 200,
    ) -> None:
        self.task = task
        self.trained = task.trained
        self._schedule = schedule
        self._folder = folder
        self._processes = processes
        self._save_every = save_every
        if processes.count > 1:
            synchronise_batch_norms(self.trained)
        self._optimiser = self._new_optimiser()

    def run(self, observe: Callable[[Position], None] = lambda position: None) -> None:
        """Train from where the folder's state is, or from the start, to the end.

        Args:
            observe: called after every step.

        Raises:
            CheckFailed: the loss is not finite.
        """
        stage, step = self._load()
        self._cut_log(stage, step)
        steps = self._schedule.steps
        while stage < len(steps):
            self._run_stage(stage, step, observe)
            stage, step = stage + 1, 0
            self._optimiser = self._new_optimiser()
            self._save(stage, step)

    def _run_stage(self, stage: int, first: int, observe: Callable[[Position], None]) -> None:
        self.task.train()
        parallel: nn.Module = self.task
        if self._processes.count > 1:  # a decoder's other masks have no part in the loss
            parallel = DistributedDataParallel(
                self.task, find_unused_parameters=True, broadcast_buffers=False
            )
        began = time.monotonic()
        with self._log() as write:
            for step in range(first, self._schedule.steps[stage]):
                loss = self._step(parallel, stage, step)
                done = step + 1
                write([stage, done, f"{loss:.6g}", f"{self._rate(stage, step):.4g}"])
                observe(self._position(stage, done, loss, first, time.monotonic() - began))
                if done % self._save_every == 0 and done < self._schedule.steps[stage]:
                    self._save(stage, done)

    def _step(self, parallel: nn.Module, stage: int, step: int) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(stage, step)
        self._optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            loss = parallel(stage, step)
        value = float(self._processes.mean(loss))
        if not math.isfinite(value):
            raise CheckFailed(
                f"the loss of stage {stage + 1}, step {step + 1} is not finite",
                "lower --lr, or train with --precision fp32; the last saved state is whole",
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self._schedule.clip)
        self._optimiser.step()
        return value

    def _rate(self, stage: int, step: int) -> float:
        return self._schedule.learning_rate * self._schedule.factor(stage, step)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._schedule.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._processes.device.type, torch.bfloat16)

    def _position(self, stage: int, done: int, loss: float, first: int, seconds: float) -> Position:
        steps = self._schedule.steps
        left = steps[stage] - done + sum(steps[stage + 1 :])
        return Position(stage, done, steps[stage], loss, seconds / (done - first) * left)

    def _new_optimiser(self) -> torch.optim.AdamW:
        parameters = list(self.trained.parameters())
        decay = self._schedule.weight_decay
        return torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self._schedule.learning_rate,
        )

    def _save(self, stage: int, step: int) -> None:
        if self._processes.first:
            tensors = {f"model.{n}": t for n, t in self.trained.state_dict().items()}
            for index, values in self._optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{n}": torch.as_tensor(t) for n, t in values.items()}
            metadata = {
                "format": FORMAT, "version": VERSION, "stage": str(stage), "step": str(step),
            }  # fmt: skip
            with atomic_file(self._folder / STATE, force=True) as temporary:
                save_file(
                    {n: t.contiguous().cpu() for n, t in tensors.items()}, temporary, metadata
                )
        self._processes.wait()

    def _load(self) -> tuple[int, int]:
        """Restore the saved state, if there is one; return the stage and its next step."""
        path = self._folder / STATE
        if not path.exists():
            return 0, 0
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged: {error}", "start again with --force") from error
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            raise InputError(f"{path} is no state of this version", "start again with --force")
        self.trained.load_state_dict(_below(tensors, "model."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimiser.").items():
            index, _, value = name.partition(".")
            state.setdefault(int(index), {})[value] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        return int(metadata["stage"]), int(metadata["step"])

    def _cut_log(self, stage: int, step: int) -> None:
        """Drop the rows of steps that will be repeated."""
        path = self._folder / LOG
        if not self._processes.first:
            return
        rows: list[list[str]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.reader(file))
        kept = [
            row
            for row in rows[1:]
            if len(row) == len(_COLUMNS) and (int(row[0]), int(row[1])) <= _before(stage, step)
        ]
        with atomic_file(path, force=True) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *kept])

    def _log(self) -> _Log:
        return _Log(self._folder / LOG if self._processes.first else None)


_COLUMNS = ["stage", "step", "loss", "learning_rate"]


def _before(stage: int, step: int) -> tuple[int, float]:
    """Return the last row that a state accounts for."""
    return (stage, step) if step else (stage - 1, math.inf)


class _Log(AbstractContextManager["Callable[[Sequence[object]], None]"]):
    """Appends rows to a CSV file, each of them there as soon as it is written."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", newline="")

    def __enter__(self) -> Callable[[Sequence[object]], None]:
        return self._write

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, row: Sequence[object]) -> None:
        if self._file is not None:
            csv.writer(self._file).writerow(row)
            self._file.flush()


def prepare_folder(
    folder: Path, settings: Mapping[str, Any], resume: bool, force: bool, processes: Processes
) -> None:
    """Make a run's folder, or check that it is the same run's.

    Args:
        folder: of the run.
        settings: all that the result depends on, as plain values for JSON.
        resume: go on with what lies there, if anything does.
        force: start again over what lies there.
        processes: this process among all; the first one writes.

    Raises:
        OutputExists: something lies there, and neither `resume` nor `force` is given.
        InputError: what lies there was run with other settings; the first is named.
    """
    path = folder / SETTINGS
    there = folder.exists() and any(folder.iterdir())
    if there and not resume and not force:
        raise OutputExists(f"{folder} exists", "go on with --resume, or start again with --force")
    if there and not path.is_file():
        raise OutputExists(f"{folder} is not a training's folder", "choose another output")
    if there and resume and not force:
        _same_settings(path, settings)
    processes.wait()
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        if force:
            (folder / STATE).unlink(missing_ok=True)
        with atomic_file(path, force=True) as temporary:
            temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    processes.wait()


def _same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: {error}", "start again with --force") from error
    now = json.loads(json.dumps(settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path.parent} was begun with {name} {before.get(name)}, not {now.get(name)}",
                "repeat the options it was begun with, or start again with --force",
            )


def last_losses(folder: Path, stages: int, share: float = 0.1) -> list[float]:
    """Return the mean loss over the last tenth of each stage's steps, from a run's log."""
    with (folder / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = []
    for stage in range(stages):
        own = [float(row["loss"]) for row in rows if int(row["stage"]) == stage]
        last = own[-max(1, round(share * len(own))) :]
        losses.append(sum(last) / len(last))
    return losses


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def shuffled(seed: int, count: int, first: int, size: int) -> Iterator[int]:
    """Yield items `first` to `first + size` of an endless sequence of shuffled passes.

    Args:
        seed: of the sequence.
        count: of the things in a pass.
        first: where to begin.
        size: how many.
    """
    for position in range(first, first + size):
        turn, place = divmod(position, count)
        yield int(_order(seed, turn, count)[place])


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(count)
