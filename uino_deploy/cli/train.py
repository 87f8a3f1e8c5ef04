"""`uino-deploy train`: train a model by a recipe, or on a data set's episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from uino_deploy.cli._console import Output
from uino_deploy.cli._episodic import Lesson, train_on_dataset
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._training import Pace, Start, pace_options, start_options

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName
    from uino_deploy.evaluation.pools import Evaluation
    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.training.recipe import Recipe
    from uino_deploy.training.trainer import Progress

_SECONDS_BETWEEN_LINES = 30.0


_DATASETS = ("demo", "pascal", "coco", "fss1000", "folder")
_COMMON = {"path", "seed", "force", "as_json", "quiet", "debug"}
_OF_RECIPES = _COMMON | {"recipe_name", "max_steps"}


@click.command()
@click.option("--recipe", "recipe_name", type=click.Choice(["demo"]),
              help="Train from nothing, by these numbers.")  # fmt: skip
@click.option("--max-steps", type=click.IntRange(min=1),
              help="Of a recipe: of each stage at most; the model is not judged.")  # fmt: skip
@click.option("--dataset", type=click.Choice(_DATASETS), help="Train on its base classes.")
@click.option("--data", type=FILE, metavar="DIR", help="The data set's folder.")
@click.option("--fold", type=click.IntRange(0, 4), help="The fold that is held out.")
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Support images of an episode.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True,
              help="Of the training on a data set.")  # fmt: skip
@click.option("--train-adapter", is_flag=True, help="Do not freeze the adapter.")
@click.option("--mirror/--no-mirror", default=True, show_default=True,
              help="Show half of the images mirrored; not for text.")  # fmt: skip
@click.option("--sam-checkpoint", type=FILE, help="Of the preset's decoder.")
@click.option("-o", "--output", "path", type=FILE, required=True,
              help="The checkpoint of a recipe, or a data set's run, a folder.")  # fmt: skip
@start_options
@pace_options(lr=1e-4, batch=8)
@force_option
@output_options
def train(
    recipe_name: str | None,
    max_steps: int | None,
    dataset: DatasetName | None,
    data: Path | None,
    fold: int | None,
    shots: int,
    steps: int,
    train_adapter: bool,
    mirror: bool,
    sam_checkpoint: Path | None,
    path: Path,
    start: Start,
    pace: Pace,
    force: bool,
    output: Output,
) -> None:
    """Train a model on episodes: by a recipe from nothing, or on a data set's base classes.

    The recipe "demo" trains the preset tiny, whole, on drawn characters, for an hour or more on two
    cores, and passes when classes that training never saw reach the recipe's mIoU.

    On a data set the encoder and the distilled adapter are frozen, and of the variant comp-star the
    decoder too; that they are unchanged is checked at the end. The run's folder holds its state and
    log: a killed run goes on with --resume and ends as if it had not been stopped. Several GPUs, or
    processes, share the batch under torchrun.

    \b
    Examples:
      uino-deploy train --recipe demo -o tiny.safetensors
      uino-deploy train --dataset pascal --data VOC2012 --fold 0 \\
          --checkpoint distilled/model.safetensors -o fold0 --precision bf16
      uino-deploy train --dataset folder --data mugs --fold 0 --checkpoint base.safetensors -o mugs
    """
    from uino_deploy.dependencies import require

    if (recipe_name is None) == (dataset is None):
        raise click.UsageError("give --recipe, or --dataset")
    if dataset is not None:
        if max_steps is not None:
            raise click.UsageError("--max-steps is for recipes; give --steps")
        require("train", "torch")
        lesson = Lesson(dataset, data, fold, shots, steps, train_adapter, mirror)
        train_on_dataset(path, lesson, start, sam_checkpoint, pace, force, output)
        return
    _refuse_options_of_datasets()
    require("train", "torch", "matplotlib", "sklearn")
    train_by_recipe(str(recipe_name), path, pace.seed, max_steps, force, output)


def _refuse_options_of_datasets() -> None:
    """Raise a UsageError where a recipe is given an option that it would not heed."""
    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _OF_RECIPES:
            raise click.UsageError(f"{option.opts[0]} is not for recipes; give --dataset")


def train_by_recipe(
    recipe_name: str, path: Path, seed: int, max_steps: int | None, force: bool, output: Output
) -> None:
    """Train by a recipe, judge the model, and write it."""
    from uino_deploy.files import atomic_file
    from uino_deploy.training.recipe import RECIPES

    recipe = RECIPES[recipe_name]
    if max_steps is not None:
        recipe = recipe.shortened(max_steps)
    # Around the training too: an output that is in the way is told before it, not after.
    with atomic_file(path, force) as temporary:
        document, failures = _train(recipe, seed, temporary, max_steps is None, output)
    output.text(f"wrote {path}")
    judged = max_steps is None
    passed = not failures if judged else None
    output.document({"checkpoint": str(path), **document, "passed": passed})
    if judged:
        output.verdict(failures)
    else:
        output.log("not judged: it was not trained to the end")


def _train(
    recipe: Recipe, seed: int, path: Path, judge: bool, output: Output
) -> tuple[dict[str, Any], list[str]]:
    """Train, judge and save; return the provenance and what fell short."""
    import torch

    from uino_deploy.model.checkpoint import save_checkpoint
    from uino_deploy.training.gate import shortfalls
    from uino_deploy.training.provenance import describe
    from uino_deploy.training.trainer import Trainer

    started = time.monotonic()
    model = Trainer(recipe, seed, _narrator(output)).run()
    seconds = time.monotonic() - started
    # What is judged is what is saved: weights rounded to float16.
    model = model.half().float()
    measured = _measure(model, recipe, output) if judge else {}
    provenance = describe(recipe, seed, seconds, measured)
    save_checkpoint(model, path, provenance, torch.float16)
    return provenance, shortfalls(recipe, measured) if judge else []


def _narrator(output: Output) -> Callable[[Progress, UinoFSS], None]:
    """Return an observer that says now and then how far the training is."""
    said = time.monotonic()

    def tell(progress: Progress, _model: UinoFSS) -> None:
        nonlocal said
        if progress.step < progress.steps and time.monotonic() - said < _SECONDS_BETWEEN_LINES:
            return
        said = time.monotonic()
        left = progress.seconds / progress.step * (progress.steps - progress.step)
        output.log(
            f"stage {progress.stage}: step {progress.step} of {progress.steps}, "
            f"loss {progress.loss:.2f}, {left / 60:.1f} min of this stage left"
        )

    return tell


def _measure(model: UinoFSS, recipe: Recipe, output: Output) -> dict[str, Evaluation]:
    from uino_deploy.training.gate import measure

    episodes = recipe.judged_on * len(recipe.required_miou)
    with output.progress("judging", episodes) as done:
        measured = measure(model, recipe, done)
    output.table(
        ["classes", "episodes", "mIoU", "required", "FB-IoU"],
        [
            [name, each.episodes, f"{each.miou:.1f}", f"{required:.1f}", f"{each.fb_iou:.1f}"]
            for (name, required), each in zip(
                recipe.required_miou.items(), measured.values(), strict=True
            )
        ],
    )
    return measured
