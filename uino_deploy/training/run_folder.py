"""A training run's folder: its settings, its state and its log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.files import atomic_file, refuse_existing
from uino_deploy.inputs import open_regular, read_regular
from uino_deploy.training.processes import Processes
from uino_deploy.workspace import locked, work_folder_stem

STATE, SETTINGS, LOG = "state.safetensors", "run.json", "log.csv"
MODEL = "model.safetensors"
RESULTS, PAGE = "results.json", "results.html"
FORMAT = "uino-training-state"
VERSION = "1"
# Of the largest state that is read: far beyond any of this program.
_MAX_BYTES = 64 << 30
_MOST_SETTINGS = 16 << 20
_DIGITS = 19  # a step's, at most
_COLUMNS = ["stage", "step", "loss", "learning_rate", "validation_miou"]


@contextmanager
def prepared_folder(
    folder: Path, settings: Mapping[str, Any], resume: bool, force: bool, processes: Processes
) -> Iterator[None]:
    """Make a run's folder, or check that it belongs to the same run; hold it for the block.

    Args:
        folder: the run's folder.
        settings: everything that the result depends on, as plain values for JSON.
        resume: continue the run in the folder, if it holds one.
        force: replace the run in the folder.
        processes: this process's place among all; the first one writes.

    Raises:
        OutputExists: the folder is not empty, and neither `resume` nor `force` is given.
        InputError: the folder's run has other settings (the first difference is named), another
            command is working on it, or it cannot be written to.
    """
    path = folder / SETTINGS
    refuse_existing(path, force=True)
    # A run that was killed before it had written its settings has begun nothing.
    unborn = work_folder_stem(SETTINGS)
    names = [each.name for each in folder.iterdir()] if folder.exists() else []
    occupied = any(not name.startswith(unborn) for name in names)
    if occupied and not resume and not force:
        raise OutputExists(
            f"{folder} exists", "continue with --resume, or start again with --force"
        )
    if occupied and not path.is_file():
        raise OutputExists(f"{folder} is not the folder of a training run", "choose another output")
    if occupied and resume and not force:
        _check_settings(path, settings)
    processes.wait()
    with ExitStack() as stack:
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(locked(folder, wait=False)):
                raise InputError(
                    f"another command is training in {folder}",
                    "wait for its end, or choose another output",
                )
            if force:  # none belongs to the new settings
                for name in (STATE, MODEL, RESULTS, PAGE):
                    (folder / name).unlink(missing_ok=True)
            with atomic_file(path, force=True) as temporary:
                temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        processes.wait()
        yield


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = decode_json(read_regular(path, "settings", _MOST_SETTINGS), dict[str, Any])
    except DocumentError as error:
        raise InputError(f"{path} is damaged: {error}", "start again with --force") from error
    now = json.loads(json.dumps(settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path.parent} was started with {name} {before.get(name)}, not {now.get(name)}",
                "repeat the options it was started with, or start again with --force",
            )


class Best(NamedTuple):
    """The best state of a validated training so far.

    Attributes:
        step: after so many steps.
        miou: the validation mIoU, in per cent.
        model: the trained modules' tensors by name.
    """

    step: int
    miou: float
    model: dict[str, Tensor]


class State(NamedTuple):
    """The position of a training run, and everything needed to continue it.

    Attributes:
        stage: the stage, from 0.
        step: the stage's next step, from 0.
        model: the trained modules' tensors by name; empty before the first save.
        optimiser: the optimiser's tensors by name; empty before a stage's first step.
        best: the best state so far, if the training is validated.
    """

    stage: int
    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    best: Best | None = None


def save_state(folder: Path, state: State) -> None:
    """Write a run's state, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimiser.{name}": tensor for name, tensor in state.optimiser.items()}
    metadata = {
        "format": FORMAT, "version": VERSION, "stage": str(state.stage), "step": str(state.step),
    }  # fmt: skip
    if state.best is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.model.items()}
        metadata |= {"best_step": str(state.best.step), "best_miou": state.best.miou.hex()}
    with atomic_file(folder / STATE, force=True) as temporary:
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, temporary, metadata)


def load_state(folder: Path) -> State:
    """Return a run's saved state, or the initial state if none is saved.

    Raises:
        InputError: the file is damaged, or holds no state of this version.
    """
    path = folder / STATE
    if not path.exists():
        return State(0, 0, {}, {})
    try:
        open_regular(path, "training state", _MAX_BYTES).close()
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}", "start again with --force") from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path} holds no state of this version", "start again with --force")
    numbers = [metadata.get(name, "") for name in ("stage", "step")]
    if not all(each.isascii() and each.isdigit() and len(each) < _DIGITS for each in numbers):
        raise InputError(f"{path} is damaged: it has no stage and step", "start again with --force")
    stage, step = map(int, numbers)
    model, optimiser = _below(tensors, "model."), _below(tensors, "optimiser.")
    return State(stage, step, model, optimiser, _best(path, metadata, _below(tensors, "best.")))


def _best(path: Path, metadata: Mapping[str, str], model: dict[str, Tensor]) -> Best | None:
    if not model:
        return None
    step, miou = metadata.get("best_step", ""), math.nan
    with suppress(ValueError, OverflowError):
        miou = float.fromhex(metadata.get("best_miou", ""))
    if not (step.isascii() and step.isdigit() and len(step) < _DIGITS and 0 <= miou <= 100):
        raise InputError(
            f"{path} is damaged: its best state has no step and mIoU", "start again with --force"
        )
    return Best(int(step), miou, model)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def cut_log(folder: Path, stage: int, step: int) -> None:
    """Drop the log's rows of steps that will be repeated; create the log if it does not exist.

    Args:
        folder: the run's folder.
        stage: the stage to continue, from 0.
        step: its next step, from 0.

    Raises:
        InputError: the log is damaged.
    """
    path = folder / LOG
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = _rows(path, file)
    last = (stage, step) if step else (stage - 1, math.inf)
    kept = [
        row
        for row in rows[1:]
        if len(row) in {len(_COLUMNS) - 1, len(_COLUMNS)}  # earlier versions had no validation
        and all(each.isascii() and each.isdigit() and len(each) < _DIGITS for each in row[:2])
        and (int(row[0]), int(row[1])) <= last
    ]
    with atomic_file(path, force=True) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([_COLUMNS, *kept])


def _rows(path: Path, file: TextIO) -> list[list[str]]:
    try:
        return list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}", "start again with --force") from error


@contextmanager
def open_log(folder: Path | None) -> Iterator[Callable[[Sequence[object]], None]]:
    """Yield a function that appends a row to a run's log and flushes it; None logs nothing."""
    if folder is None:
        yield lambda _row: None
        return
    with (folder / LOG).open("a", newline="") as file:

        def write(row: Sequence[object]) -> None:
            csv.writer(file).writerow(row)
            file.flush()

        yield write


class Logged(NamedTuple):
    """A row of a run's log; what was not measured at that step is None."""

    stage: int
    step: int
    loss: float | None
    miou: float | None


def read_log(folder: Path) -> list[Logged]:
    """Return what a run logged, in order; a validated run begins with step 0, before training.

    Raises:
        InputError: the log is damaged.
    """
    path = folder / LOG
    with path.open(newline="") as file:
        rows = _rows(path, file)[1:]
    try:
        return [
            Logged(int(row[0]), int(row[1]), _number(row[2]), _number("".join(row[4:])))
            for row in rows
        ]
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged: {error}", "start again with --force") from error


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def last_losses(folder: Path, stages: int, share: float = 0.1) -> list[float]:
    """Return the mean loss over the last tenth of each stage's steps, from a run's log.

    Raises:
        InputError: the log is damaged, or has no step of a stage.
    """
    rows = read_log(folder)
    means = []
    for stage in range(stages):
        losses = [row.loss for row in rows if row.stage == stage and row.loss is not None]
        if not losses:
            raise InputError(
                f"{folder / LOG} has no step of stage {stage}", "start again with --force"
            )
        last = losses[-max(1, round(share * len(losses))) :]
        means.append(sum(last) / len(last))
    return means
