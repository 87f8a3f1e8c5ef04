"""`uino-deploy train --dataset`: episodic training on a data set's base classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uino_deploy.cli._console import Output
from uino_deploy.cli._training import Pace, Start, identity, narrator

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName


@dataclass(frozen=True)
class Lesson:
    """What is learned, and for how long."""

    dataset: DatasetName
    data: Path | None
    fold: int | None
    shots: int
    steps: int
    adapter: bool
    mirror: bool


def train_on_dataset(
    path: Path,
    lesson: Lesson,
    start: Start,
    sam_checkpoint: Path | None,
    pace: Pace,
    force: bool,
    output: Output,
) -> None:
    """Train in the folder `path`; its `model.safetensors` is the result.

    Raises:
        InputError: the data set's layout is wrong, or the folder is of a run with other settings.
        OutputExists: the folder is there, and neither `--resume` nor `--force` is given.
        CheckFailed: the loss is not finite, or a frozen part changed.
    """
    from uino_deploy.data.open import open_dataset
    from uino_deploy.model.segmenter import parameter_counts
    from uino_deploy.training.episodic import LEARNING, EpisodicTraining
    from uino_deploy.training.loop import Engine, Schedule, last_losses, prepare_folder
    from uino_deploy.training.processes import join_processes
    from uino_deploy.training.runs import check_frozen, frozen_digest, save_result

    assembly = start.assemble(sam_checkpoint, pace.seed)
    model = assembly.model
    learning = LEARNING[model.config.variant] + (("adapter",) if lesson.adapter else ())
    dataset = open_dataset(lesson.dataset, lesson.data, lesson.fold, "train")
    settings = {
        **identity(assembly),
        **pace.lasting,
        "dataset": lesson.dataset,
        "fold": lesson.fold,
        "classes": list(dataset.classes),
        "shots": lesson.shots,
        "steps": lesson.steps,
        "learning": list(learning),
        "mirror": lesson.mirror,
    }
    with join_processes() as processes:
        told = output if processes.first else Output(quiet=True)
        prepare_folder(path, settings, pace.resume, force, processes)
        counts = parameter_counts(model)
        count = sum(counts[part] for part in learning)
        told.log(
            f"{model.config.variant}: {count:,} parameters ({count / 1e6:.2f} M) learn from "
            f"{len(dataset.classes)} of the data set's classes: {', '.join(learning)}"
        )
        undistilled = "adapter" in assembly.untrained and not lesson.adapter
        if undistilled and processes.first:
            told.warn("the adapter is not distilled, and frozen; see --train-adapter, or `distill`")
        before = frozen_digest(model, learning)
        model.to(processes.device)
        task = EpisodicTraining(
            model,
            learning,
            dataset,
            lesson.shots,
            pace.batch,
            pace.seed,
            processes,
            lesson.mirror,
        )
        schedule = Schedule((lesson.steps,), pace.lr, pace.warmup, precision=pace.precision)
        Engine(task, schedule, path, processes, pace.save_every).run(narrator(told, 1))
        check_frozen(before, model, learning)
        if not processes.first:
            return
        command = f"uino-deploy train --dataset {lesson.dataset}"
        saved = save_result(path, assembly, learning, command, settings)
    (loss,) = last_losses(path, 1)
    output.text(f"{count:,} parameters ({count / 1e6:.2f} M) learned: {', '.join(learning)}")
    output.text(f"every other part is unchanged; loss of the last steps {loss:.4f}; wrote {saved}")
    output.document(
        {
            "checkpoint": str(saved),
            "parameters": count,
            "learned": list(learning),
            "loss": loss,
            "settings": settings,
        }
    )
