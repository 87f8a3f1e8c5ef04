"""`uino-deploy train`: train a model from nothing on procedural episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import force_option, output_options

if TYPE_CHECKING:
    from uino_deploy.data.evaluation import Evaluation
    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.training.recipe import Recipe
    from uino_deploy.training.trainer import Progress

_SECONDS_BETWEEN_LINES = 30.0


@click.command()
@click.option("--recipe", "recipe_name", type=click.Choice(["demo"]), required=True,
              help="What to train, and by which numbers.")  # fmt: skip
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), required=True,
              help="The checkpoint to write (.safetensors).")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the initial weights and of the episodes.")  # fmt: skip
@click.option("--max-steps", type=click.IntRange(min=1),
              help="Stop each stage after so many steps; the model is not judged.")  # fmt: skip
@force_option
@output_options
def train(
    recipe_name: str, path: Path, seed: int, max_steps: int | None, force: bool, output: Output
) -> None:
    """Train a model from nothing on episodes drawn as they are needed.

    The recipe "demo" trains the preset tiny, whole, on glyphs of matplotlib's fonts: about 40
    minutes on two cores. It passes when classes that training never saw reach the recipe's mIoU:
    held-out glyphs, and scikit-learn's handwritten digits.

    \b
    Examples:
      uino-deploy train --recipe demo -o tiny.safetensors
      uino-deploy train --recipe demo -o smoke.safetensors --max-steps 3
    """
    from uino_deploy.dependencies import require

    require("train", "torch", "matplotlib", "sklearn")
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
