"""`uino-deploy ablate`: the paper's ablations on drawn characters, row by row."""

from __future__ import annotations

from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, output_options
from uino_deploy.training.reporting import narrator

# The rows of `uino_deploy.studies.rows`: `--help` must not import it.
_ROWS = (
    "ba-pcs", "svp", "mhcm", "ce", "cp4d", "undistilled", "frozen",
    "encoder-64", "encoder-128", "encoder-192",
)  # fmt: skip


@click.command()
@click.option("--checkpoint", type=FILE, required=True,
              help="Trained demo model that stands in for DINOv2 and SAM.")  # fmt: skip
@click.option("--row", "rows", type=click.Choice(_ROWS), multiple=True,
              help="Run only this row; repeatable.  [default: all]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Training runs per row; every row trains once first.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=1500, show_default=True,
              help="Training steps per row.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="Episodes per step.")  # fmt: skip
@click.option("--lr", type=FiniteRange(min=0, min_open=True), default=1e-3, show_default=True,
              help="Peak learning rate.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True,
              help="Held-out episodes to evaluate each row on.")  # fmt: skip
@click.option("--encoder-steps", type=click.IntRange(min=1), default=3000, show_default=True,
              help="Training steps for rows that train their own encoder.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, metavar="DIR",
              help="Folder for the rows' results; a finished row is not run again.")  # fmt: skip
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
    """Train and evaluate the rows of the paper's ablation tables.

    The data are drawn characters. All rows get the same training steps and the same held-out
    episodes. All but the last three share one encoder; each of those first trains one of its own
    width. The paper's figures (COCO-20i) are shown beside ours to compare trends, not values. After
    an interruption, the same command continues where it stopped.

    \b
    Example:
      uino-deploy ablate --checkpoint uino_deploy/assets/tiny.safetensors -o build/ablation
    """
    from uino_deploy import studies
    from uino_deploy.studies.ablation import Budget

    made = studies.ablate(
        checkpoint,
        path,
        rows=rows,
        seeds=seeds,
        budget=Budget(steps, batch, lr, episodes, encoder_steps),
        log=output.log,
        observe=narrator(output),
        progress=output.progress,
    )
    output.table(made.columns, made.rows)
    output.document(made.document)
