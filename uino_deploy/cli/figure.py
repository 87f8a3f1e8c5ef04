"""`uino-deploy figure`: what an encoder's layers see, and what models find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._training import Start, start_options
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName

_DATASETS = ("demo", "digits", "pascal", "coco", "fss1000", "folder")


def _png(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise click.BadParameter(f"{path} is to hold a PNG: name it .png")
    return path


@click.group()
def figure() -> None:
    """Draw what an encoder's layers see, and what models find."""


@figure.command()
@click.argument("images", nargs=-1, required=True, type=FILE)
@click.option("--point", default="0.5,0.5", show_default=True, metavar="X,Y",
              help="Of the first image, as shares of its width and height.")  # fmt: skip
@click.option("--sam-checkpoint", type=FILE, help="The teacher to compare with.")
@click.option("-o", "--output", "path", type=FILE, required=True, callback=_png,
              help="The picture (.png).")  # fmt: skip
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
    """Draw how alike a point is to all others, through all layers, and for SAM.

    With SAM's checkpoint, the layer whose similarities correlate best with SAM's, over all images
    and all pairs of places, is proposed as the preset's early layer.

    \b
    Example:
      uino-deploy figure similarity photo.jpg --preset vitb14 --point 0.4,0.6 \\
          --encoder-checkpoint dinov2_vitb14_pretrain.pth \\
          --sam-checkpoint sam_vit_h_4b8939.pth -o similarity.png
    """
    from uino_deploy.dependencies import require
    from uino_deploy.files import refuse_existing

    require("export", "torch")
    from uino_deploy.images import load_image
    from uino_deploy.model.checkpoint import load_sam_image_encoder
    from uino_deploy.studies.similarity import (
        propose_early_layer,
        self_similarity,
        similarity_figure,
        write_picture,
    )

    refuse_existing(path, force)
    place = _shares(point)
    model = start.assemble(None, 0).model
    teacher = None if sam_checkpoint is None else load_sam_image_encoder(sam_checkpoint)
    pictures = [load_image(image) for image in images]
    size = model.config.image_size
    with output.progress("encoding", len(pictures)) as done:
        maps = []
        for picture in pictures:
            maps.append(self_similarity(picture, size, model.encoder, teacher))
            done()
    early, closeness = (None, []) if teacher is None else propose_early_layer(maps)
    write_picture(similarity_figure(pictures[0], maps[0], place, early), path, force)
    if early is not None:
        output.table(
            ["layer", "correlation with SAM"],
            [[number, f"{value:.3f}"] for number, value in enumerate(closeness, 1)],
        )
        output.text(f"proposed early_layer: {early} (set: {model.config.encoder.early_layer})")
    output.text(f"wrote {path}")
    output.document({"figure": str(path), "early_layer": early, "correlation": closeness})


@figure.command()
@click.argument("sources", nargs=-1, required=True, type=FILE, metavar="CHECKPOINT_OR_BUNDLE...")
@click.option("--dataset", type=click.Choice(_DATASETS), required=True, help="What to show.")
@click.option("--data", type=FILE, metavar="DIR", help="The data set's folder.")
@click.option("--fold", type=click.IntRange(0, 4), help="Of the data set.")
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--count", type=click.IntRange(1, 100), default=8, show_default=True,
              help="Episodes: the first ones of the seed.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=2, show_default=True)
@click.option("--ablate", is_flag=True,
              help="Show a single checkpoint with MHCM, and CE, switched off too.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, callback=_png,
              help="The picture (.png).")  # fmt: skip
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
    """Draw episodes with what one or several models find in them, and its IoU.

    \b
    Examples:
      uino-deploy figure grid full.safetensors --ablate --dataset demo -o grid.png
      uino-deploy figure grid full.uino comp.uino --dataset folder --data mugs -o grid.png
    """
    from uino_deploy.cli.evaluate import loader, segmenter_of
    from uino_deploy.data.episode_list import draw_list
    from uino_deploy.data.open import open_dataset
    from uino_deploy.evaluation.segmenters import model_segmenter
    from uino_deploy.files import refuse_existing
    from uino_deploy.studies.grid import ablations, qualitative_grid
    from uino_deploy.studies.similarity import write_picture

    refuse_existing(path, force)
    if ablate and (len(sources) > 1 or sources[0].is_dir()):
        raise click.UsageError("--ablate is for a single checkpoint")
    opened = open_dataset(dataset, data, fold)
    episodes = draw_list(opened, count, shots, seed)
    load = loader("onnxruntime")
    segmenters = {source.name: segmenter_of(source, load) for source in sources}
    if ablate:
        from uino_deploy.model.checkpoint import load_checkpoint

        altered = ablations(load_checkpoint(sources[0]))
        segmenters |= {label: model_segmenter(model) for label, model in altered.items()}
    write_picture(qualitative_grid(segmenters, opened, episodes), path, force)
    output.text(f"wrote {path}")
    output.document({"figure": str(path), "columns": list(segmenters), "episodes": count})


def _shares(point: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in point.split(","))
    except ValueError as error:
        raise InputError(f"--point {point!r} is not X,Y", "such as 0.5,0.5") from error
    if not (0 <= x < 1 and 0 <= y < 1):
        raise InputError(f"--point {point} lies outside the image", "shares from 0 to below 1")
    return x, y
