"""A run that trains some parts of a model, proves the others unchanged, and saves the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy.errors import CheckFailed
from uino_deploy.model.assembly import Assembly
from uino_deploy.model.checkpoint import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.loop import Task, TrainingLoop, Validation
from uino_deploy.training.processes import Processes
from uino_deploy.training.provenance import describe, digest_of
from uino_deploy.training.reporting import Reporter, narrator
from uino_deploy.training.run_folder import MODEL
from uino_deploy.training.schedule import RunOptions


def initial_settings(assembly: Assembly) -> dict[str, Any]:
    """Return settings that identify the model a run starts from, for `prepared_folder`."""
    return {
        "model": assembly.model.config.to_dict(),
        "sources": {source.role: source.sha256 for source in assembly.sources},
    }


def train_parts(
    assembly: Assembly,
    task: Task,
    steps: Sequence[int],
    folder: Path,
    options: RunOptions,
    settings: Mapping[str, Any],
    command: str,
    processes: Processes,
    reporter: Reporter,
    validation: Validation | None = None,
) -> Path:
    """Train a task's parts in a prepared folder and write the model there, with its provenance.

    Args:
        assembly: the model, and its sources.
        task: trains parts of that model, by their names.
        steps: steps of each stage.
        folder: the run's folder.
        options: learning rate, precision and saves.
        settings: everything that the result depends on.
        command: the command line to name in the checkpoint's provenance.
        processes: this process's place among all; the first one writes the result.
        reporter: where messages go.
        validation: judges the training, whose best state is then the result.

    Returns:
        The checkpoint's path.

    Raises:
        CheckFailed: the loss is not finite, or a frozen part changed.
    """
    model, learned = assembly.model, tuple(task.trained)
    before = frozen_digest(model, learned)
    model.to(processes.device)
    loop = TrainingLoop(
        task,
        [options.schedule(each) for each in steps],
        folder,
        processes,
        options.save_every,
        options.precision,
        validation,
    )
    loop.run(narrator(reporter))
    check_frozen(before, model, learned)
    path = folder / MODEL
    if processes.first:
        facts = {
            "learned": list(learned),
            "untrained": [part for part in assembly.untrained if part not in learned],
            "sources": [msgspec.to_builtins(source) for source in assembly.sources],
            "settings": dict(settings),
        }
        save_checkpoint(model.eval().cpu(), path, describe(command, facts), force=True)
    return path


def frozen_digest(model: UinoFSS, learning: Iterable[str]) -> str:
    """Return a SHA-256 of all tensors of a model but those of the parts that learn."""
    parts = tuple(f"{name}." for name in learning)
    return digest_of({n: t for n, t in model.state_dict().items() if not n.startswith(parts)})


def check_frozen(before: str, model: UinoFSS, learning: Iterable[str]) -> None:
    """Compare a model with its `frozen_digest` from before the training.

    Raises:
        CheckFailed: a frozen part has changed.
    """
    if frozen_digest(model, learning) != before:
        raise CheckFailed("a frozen part of the model changed in training", "this is a bug")
