"""`uino-deploy figure`: pictures of an encoder's self-similarity and of models' masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import DATASETS, FILE, force_option, output_options
from uino_deploy.cli._signature import signature_option
from uino_deploy.cli._training import Start, start_options
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName


def _png(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise click.BadParameter(f"{path} does not end in .png")
    return path


@click.group()
def figure() -> None:
    """Draw an encoder's self-similarity, or models' masks."""


@figure.command()
@click.argument("images", nargs=-1, required=True, type=FILE)
@click.option("--point", default="0.5,0.5", show_default=True, metavar="X,Y",
              help="Point in the first image, as fractions of its width and height.")  # fmt: skip
@click.option("--sam-checkpoint", type=FILE, help="SAM checkpoint to compare the layers with.")
@click.option("-o", "--output", "path", type=FILE, required=True, callback=_png,
              help="The picture to write (.png).")  # fmt: skip
@start_options
@force_option
@output_options
def similarity(
    images: tuple[Path, ...],
    point: str,
    sam_checkpoint: Path | None,
    path: Path,
    start: Start,
    force: bool,
    output: Output,
) -> None:
    """Draw the similarity of one point to all others in every layer, and in SAM.

    With a SAM checkpoint, the command proposes an early layer for the preset: the one whose
    similarities correlate best with SAM's over all images and all pairs of places.

    \b
    Example:
      uino-deploy figure similarity photo.jpg --preset vitb14 --point 0.4,0.6 \\
          --encoder-checkpoint dinov2_vitb14_pretrain.pth \\
          --sam-checkpoint sam_vit_h_4b8939.pth -o similarity.png
    """
    from uino_deploy import studies
    from uino_deploy.dependencies import require
    from uino_deploy.files import refuse_existing

    require("export", "torch")
    refuse_existing(path, force)
    model = start.assemble(None, 0).model
    early = studies.draw_similarity(
        images,
        model,
        path,
        point=_shares(point),
        sam_checkpoint=sam_checkpoint,
        force=force,
        progress=output.progress,
    )
    if early.proposed is not None:
        output.table(
            ["layer", "correlation with SAM"],
            [[number, f"{value:.3f}"] for number, value in enumerate(early.closeness, 1)],
        )
        current = model.config.encoder.early_layer
        output.text(f"proposed early_layer: {early.proposed} (set: {current})")
    output.text(f"wrote {path}")
    output.document(
        {"figure": str(path), "early_layer": early.proposed, "correlation": early.closeness}
    )


@figure.command()
@click.argument("sources", nargs=-1, required=True, type=FILE, metavar="CHECKPOINT_OR_BUNDLE...")
@click.option("--dataset", type=click.Choice(DATASETS), required=True,
              help="The data set to draw episodes from.")  # fmt: skip
@click.option("--data", type=FILE, metavar="DIR", help="The data set's folder.")
@click.option("--fold", type=click.IntRange(0, 4), help="The data set's held-out fold.")
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Support images per episode.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, 100), default=8, show_default=True,
              help="Number of episodes to draw.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=2, show_default=True,
              help="Seed of the episodes.")  # fmt: skip
@click.option("--ablate", is_flag=True,
              help="Also draw the checkpoint without MHCM and without CE.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, callback=_png,
              help="The picture to write (.png).")  # fmt: skip
@signature_option
@force_option
@output_options
def grid(
    sources: tuple[Path, ...],
    dataset: DatasetName,
    data: Path | None,
    fold: int | None,
    shots: int,
    count: int,
    seed: int,
    ablate: bool,
    path: Path,
    force: bool,
    output: Output,
) -> None:
    """Draw episodes with the mask of each model and its IoU.

    \b
    Examples:
      uino-deploy figure grid full.safetensors --ablate --dataset demo -o grid.png
      uino-deploy figure grid full.uino comp.uino --dataset folder --data mugs -o grid.png
    """
    from uino_deploy import studies

    columns = studies.draw_grid(
        sources,
        dataset,
        path,
        data=data,
        fold=fold,
        shots=shots,
        count=count,
        seed=seed,
        ablate=ablate,
        force=force,
    )
    output.text(f"wrote {path}")
    output.document({"figure": str(path), "columns": columns, "episodes": count})


def _shares(point: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in point.split(","))
    except ValueError as error:
        raise InputError(f"--point {point!r} is not X,Y", "such as 0.5,0.5") from error
    return x, y
