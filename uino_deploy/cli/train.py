"""`uino-deploy train`: train a model by a recipe, or on a data set's episodes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, ByteSize, FiniteRange, force_option, output_options
from uino_deploy.cli._training import Start, run_options, start_options
from uino_deploy.training.schedule import EPISODIC, RunOptions

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName
    from uino_deploy.training.episodic import EpisodicResult

_DATASETS = ("demo", "pascal", "coco", "fss1000", "folder")
# The names of `uino_deploy.training.recipe.RECIPES`: `--help` must not import it.
_RECIPES = ("demo", "things")
_COMMON = {"path", "seed", "force", "as_json", "quiet", "debug"}
_OF_RECIPES = _COMMON | {"recipe_name", "max_steps"}


@click.command()
@click.option("--recipe", "recipe_name", type=click.Choice(_RECIPES),
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
@click.option("--augment", is_flag=True,
              help="Also cut and recolour images at random; keeps no tokens.")  # fmt: skip
@click.option("--validate-every", type=click.IntRange(min=0), metavar="STEPS",
              help="Steps between validations; 0 for none.  "
              "[default: 100 for a folder, else 0]")  # fmt: skip
@click.option("--patience", type=click.IntRange(min=0), default=10, show_default=True,
              help="Stop after this many validations without a new best; 0 for never.")  # fmt: skip
@click.option("--cache-limit", type=ByteSize(), default="20GB", show_default=True,
              help="Most that the encoder's tokens may take on disk; 0 keeps none.")  # fmt: skip
@click.option("--cache", type=FILE, metavar="DIR",
              help="Keep the encoder's tokens here.  [default: OUTPUT/tokens]")  # fmt: skip
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
    augment: bool,
    validate_every: int | None,
    patience: int,
    cache_limit: int,
    cache: Path | None,
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
    uninterrupted run. Several GPUs, or processes, share the batch under torchrun.

    The encoder's tokens of an image, and of its mirror image, are computed once and kept in the
    output folder, if they fit --cache-limit. From a folder of yours, every fifth image (or class,
    of ten or more) is held out to judge the model as it learns, and the best state is kept. It is
    compared with methods that need no training, on the fold, in the output folder's results.html. A
    model that does not beat them is no error: the exit code is 0, and --json has
    "beats_baselines": false.

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
    from uino_deploy.training.episodic import Judging
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
        augment=augment,
        judging=Judging(validate_every, patience),
        cache=cache,
        cache_limit=cache_limit,
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
    if result.judgement is not None:
        _print_judgement(result, output)
    paths = {"checkpoint": str(result.checkpoint), "page": result.page and str(result.page)}
    output.document({**asdict(result), **paths})


def _print_judgement(result: EpisodicResult, output: Output) -> None:
    """Print what the trained model reached beside simple methods; in red if it is no better."""
    figures: dict[str, Any] = result.judgement or {}
    output.text(
        f"{result.steps} steps, the best state after {result.best_step}; judged on "
        f"{figures['held_out']}, {figures['episodes']} episodes"
    )
    output.table(
        ["method", "mIoU"],
        [
            *((name, f"{each['miou']:.1f}") for name, each in figures["baselines"].items()),
            ("before training", f"{figures['before']['miou']:.1f}"),
            ("after training", f"{figures['miou']:.1f}"),
        ],
    )
    if result.beats_baselines:
        output.outcome("BEATS THE SIMPLE METHODS", "green", result.sentence)
    else:
        output.outcome("DOES NOT BEAT THE SIMPLE METHODS", "red", result.sentence)
        for each in result.advice:
            output.text(f"  to try: {each}")
    if result.page is not None:
        output.text(f"curves and pictures: {result.page}")


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
