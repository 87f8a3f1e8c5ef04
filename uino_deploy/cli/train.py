"""`uino-deploy train`: train a model by a recipe, or on a data set's episodes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, force_option, output_options
from uino_deploy.cli._training import Start, run_options, start_options
from uino_deploy.training.schedule import EPISODIC, RunOptions

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName

_DATASETS = ("demo", "pascal", "coco", "fss1000", "folder")
_COMMON = {"path", "seed", "force", "as_json", "quiet", "debug"}
_OF_RECIPES = _COMMON | {"recipe_name", "max_steps"}


@click.command()
@click.option("--recipe", "recipe_name", type=click.Choice(["demo"]),
              help="Train from scratch by this recipe.")  # fmt: skip
@click.option("--max-steps", type=click.IntRange(min=1),
              help="Stop each stage after this many steps; skip evaluation.")  # fmt: skip
@click.option("--dataset", type=click.Choice(_DATASETS),
              help="Train on this data set's base classes.")  # fmt: skip
@click.option("--data", type=FILE, metavar="DIR", help="Folder of the data set.")
@click.option("--fold", type=click.IntRange(0, 4), help="Fold to hold out.")
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Support images per episode.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True,
              help="Training steps on a data set.")  # fmt: skip
@click.option("--train-adapter", is_flag=True, help="Also train the adapter.")
@click.option("--mirror/--no-mirror", default=True, show_default=True,
              help="Mirror half of the images; --no-mirror for text.")  # fmt: skip
@click.option("--absent", type=FiniteRange(0, 1, max_open=True), metavar="SHARE",
              help="Share of the episodes whose query lacks the target.  "
              "[default: 0.15; 0 for one class]")  # fmt: skip
@click.option("--sam-checkpoint", type=FILE, help="SAM checkpoint for the preset's mask decoder.")
@click.option("-o", "--output", "path", type=FILE, required=True,
              help="Checkpoint to write (--recipe), or folder (--dataset).")  # fmt: skip
@start_options
@run_options(EPISODIC)
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
    absent: float | None,
    sam_checkpoint: Path | None,
    path: Path,
    start: Start,
    options: RunOptions,
    resume: bool,
    force: bool,
    output: Output,
) -> None:
    """Train a model by a recipe, or on a data set's base classes.

    The recipe "demo" trains the preset tiny from scratch on drawn characters, for an hour or more
    on two cores. The recipe "things" trains a model of 168 px on drawn things over photographs. A
    recipe passes if the model reaches its mIoU on classes that training never saw.

    On a data set the encoder and the distilled adapter are frozen, as is the decoder of the variant
    comp-star; the command checks at the end that they are unchanged. The run's folder holds its
    state and log: a killed run continues with --resume and ends with the result of an
    uninterrupted run.
    Several GPUs, or processes, share the batch under torchrun.

    \b
    Examples:
      uino-deploy train --recipe demo -o tiny.safetensors
      uino-deploy train --dataset pascal --data VOC2012 --fold 0 \\
          --checkpoint distilled/model.safetensors -o fold0 --precision bf16
      uino-deploy train --dataset folder --data mugs --fold 0 --checkpoint base.safetensors -o mugs
    """
    from uino_deploy.dependencies import require

    if (recipe_name is None) == (dataset is None):
        raise click.UsageError("give either --recipe or --dataset")
    if dataset is None:
        _refuse_options_of_datasets()
        require("train", "torch", "matplotlib", "sklearn")
        _train_by_recipe(str(recipe_name), path, options.seed, max_steps, force, output)
        return
    if max_steps is not None:
        raise click.UsageError("--max-steps needs --recipe; a data set takes --steps")
    require("train", "torch")
    from uino_deploy import training
    from uino_deploy.training.processes import is_first_process

    result = training.train(
        start.assemble(sam_checkpoint, options.seed),
        dataset,
        path,
        options,
        data=data,
        fold=fold,
        shots=shots,
        steps=steps,
        train_adapter=train_adapter,
        mirror=mirror,
        absent=absent,
        resume=resume,
        force=force,
        reporter=output,
    )
    if not is_first_process():
        return
    output.text(
        f"{result.parameters:,} parameters ({result.parameters / 1e6:.2f} M) learned: "
        f"{', '.join(result.learned)}"
    )
    output.text(
        f"every other part is unchanged; loss of the last steps {result.loss:.4f}; "
        f"wrote {result.checkpoint}"
    )
    output.document(
        {**asdict(result), "checkpoint": str(result.checkpoint), "learned": list(result.learned)}
    )


def _refuse_options_of_datasets() -> None:
    """Raise a UsageError if the user gave an option that recipes ignore."""
    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _OF_RECIPES:
            raise click.UsageError(f"{option.opts[0]} needs --dataset; a recipe ignores it")


def _train_by_recipe(
    name: str, path: Path, seed: int, max_steps: int | None, force: bool, output: Output
) -> None:
    """Train by a recipe and print what the model reached."""
    from uino_deploy import training
    from uino_deploy.training.recipe import RECIPES

    recipe = RECIPES[name]
    result = training.train_recipe(
        recipe, path, seed=seed, max_steps=max_steps, force=force, reporter=output
    )
    judged = result.shortfalls is not None
    if judged:
        output.table(
            ["classes", "episodes", "mIoU", "required", "FB-IoU"],
            [
                [name, each.episodes, f"{each.miou:.1f}", f"{required:.1f}", f"{each.fb_iou:.1f}"]
                for (name, required), each in zip(
                    recipe.required_miou.items(), result.measured.values(), strict=True
                )
            ],
        )  # fmt: skip
    output.text(f"wrote {path}")
    passed = not result.shortfalls if judged else None
    output.document({"checkpoint": str(path), **result.provenance, "passed": passed})
    if result.shortfalls is None:
        output.log("not evaluated: --max-steps cut the training short")
    else:
        output.verdict(result.shortfalls)
