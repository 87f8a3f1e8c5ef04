"""`uino-deploy enroll`: encode a class's support images once, into one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._backend import backend_options, warned
from uino_deploy.cli._console import Output, size
from uino_deploy.cli._options import FILE, bits_option, force_option, label_option, output_options
from uino_deploy.cli._signature import watching_signature

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor


@click.command()
@click.argument("bundle", type=FILE)
@click.option(
    "--shot",
    "shots",
    multiple=True,
    required=True,
    metavar="IMAGE:MASK",
    help="Support image and its mask (two levels, labels, or soft edges that are cut at half); "
    "with --coco only the image. Repeatable.",
)
@click.option(
    "--coco",
    type=FILE,
    help="Take the masks from this COCO annotation file.",
)
@click.option("--category", help="Category in the COCO file.  [default: the class's name]")
@label_option
@click.option(
    "--negative",
    "negatives",
    multiple=True,
    metavar="IMAGE",
    help="Image, folder or glob that does not show the class, so that `predict` can tell. "
    "Repeatable.",
)
@bits_option
@click.option("--name", required=True, help="Class name; output folders are named after it.")
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=FILE,
    help="Support file to write.",
)
@backend_options
@force_option
@output_options
def enroll(
    bundle: Path,
    shots: tuple[str, ...],
    coco: Path | None,
    category: str | None,
    label: int | None,
    negatives: tuple[str, ...],
    bits: int | None,
    name: str,
    output_path: Path,
    load: Callable[[Path], Predictor],
    force: bool,
    output: Output,
) -> None:
    """Encode the support images of one class into a file.

    `predict --support` takes the file. It belongs to the model that wrote it. The shots, and the
    negatives if there are any, also calibrate how `predict` tells whether an image shows the class.

    \b
    Examples:
      uino-deploy enroll demo.uino --shot a.jpg:a-mask.png --name bottle -o bottle.safetensors
      uino-deploy enroll demo.uino --shot a.jpg --shot b.jpg --coco annotations.json \\
          --name bottle -o bottle.safetensors
    """
    from uino_deploy.files import refuse_existing, refuse_input
    from uino_deploy.runtime import read_negatives, read_shots
    from uino_deploy.runtime.shots import files_of

    if category is not None and coco is None:
        raise click.UsageError("--category needs --coco")
    if label is not None and coco is not None:
        raise click.UsageError("--label is for mask files, not for --coco")
    refuse_existing(output_path, force)
    refuse_input(output_path, [bundle, *files_of(shots, coco, negatives)])
    read = read_shots(shots, coco, category or name, label, bits)
    without = read_negatives(negatives, bits)
    support = warned(load, output)(bundle).enroll(read, name, without)
    with watching_signature(output_path, output):
        support.save(output_path, force)
    count = output_path.stat().st_size
    plural = "s" if support.shots > 1 else ""
    apart = f", {len(without)} without it" if without else ""
    output.text(f"{name}: {support.shots} shot{plural}{apart}, {size(count)}, {output_path}")
    output.document(
        {
            "support": str(output_path),
            "name": name,
            "shots": support.shots,
            "negatives": len(without),
            "bytes": count,
            "precision": support.precision,
            "model": support.model,
            "fingerprint": support.fingerprint,
        }
    )
