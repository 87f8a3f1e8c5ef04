"""`uino-deploy ablate`: the paper's ablations on drawn characters, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, output_options
from uino_deploy.training.progress import narrator

if TYPE_CHECKING:
    from uino_deploy.evaluation.runs import Run

_ROWS = (
    "ba-pcs", "svp", "mhcm", "ce", "cp4d", "undistilled", "frozen",
    "encoder-64", "encoder-128", "encoder-192",
)  # fmt: skip


@click.command()
@click.option("--checkpoint", type=FILE, required=True,
              help="A trained demo model: the stand-in for DINOv2 and SAM.")  # fmt: skip
@click.option("--row", "rows", type=click.Choice(_ROWS), multiple=True,
              help="Run this row only; repeatable.  [default: all]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Trainings of each row; the first of all rows comes first.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=1500, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True)
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True,
              help="Held-out episodes that judge each row.")  # fmt: skip
@click.option("--encoder-steps", type=click.IntRange(min=1), default=3000, show_default=True,
              help="Of an encoder that a row trains first.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, metavar="DIR",
              help="A folder for each row; rows that are finished there are read.")  # fmt: skip
@output_options
def ablate(
    checkpoint: Path,
    rows: tuple[str, ...],
    seeds: int,
    steps: int,
    batch: int,
    lr: float,
    episodes: int,
    encoder_steps: int,
    path: Path,
    output: Output,
) -> None:
    """Train and judge the rows of the paper's ablation tables on drawn characters.

    Every row has the same steps and the same held-out episodes, and but for the last three the same
    encoder; those train one of their own width first. The paper's figures (COCO-20i) stand beside
    ours to compare directions, not heights. The same command goes on where it was stopped, row by
    row and step by step.

    \b
    Example:
      uino-deploy ablate --checkpoint uino_deploy/assets/tiny.safetensors -o build/ablation
    """
    from uino_deploy.dependencies import library_versions, require
    from uino_deploy.files import sha256

    require("train", "torch", "matplotlib")
    from uino_deploy.studies.ablation import Budget, run_row, table

    budget = Budget(steps, batch, lr, episodes, encoder_steps)
    chosen = [key for key in _ROWS if not rows or key in rows]
    runs: dict[str, dict[int, Run]] = {key: {} for key in chosen}
    for seed in range(seeds):
        for key in chosen:
            output.log(f"row {key}, seed {seed}")
            with output.progress("judging", episodes) as done:
                told = narrator(output)
                runs[key][seed] = run_row(key, seed, checkpoint, path, budget, told, done)
    columns, lines = table(runs)
    output.table(columns, lines)
    output.document(
        {
            "checkpoint_sha256": sha256(checkpoint),
            "versions": library_versions(),
            "budget": vars(budget),
            "seeds": seeds,
            "rows": {
                key: {str(seed): run.document() for seed, run in found.items()}
                for key, found in runs.items()
            },
            "table": [dict(zip(columns, line, strict=True)) for line in lines],
        }
    )
