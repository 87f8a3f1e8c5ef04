"""`uino-deploy enroll`: encode a class's support images once, into one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._backend import backend_options
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import force_option, output_options
from uino_deploy.cli.inspect import size
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.images import UInt8
    from uino_deploy.runtime import Predictor


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--shot",
    "shots",
    multiple=True,
    required=True,
    metavar="IMAGE:MASK",
    help="A support image and its mask (what is not black is the object); with --coco the image "
    "alone. Repeat it for more shots.",
)
@click.option(
    "--coco",
    type=click.Path(path_type=Path),
    help="Take the masks from this COCO annotation file's polygons.",
)
@click.option("--category", help="The category in the COCO file.  [default: the class's name]")
@click.option("--name", required=True, help="The class's name; it names output folders.")
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The support file.",
)
@backend_options
@force_option
@output_options
def enroll(
    bundle: Path,
    shots: tuple[str, ...],
    coco: Path | None,
    category: str | None,
    name: str,
    output_path: Path,
    load: Callable[[Path], Predictor],
    force: bool,
    output: Output,
) -> None:
    """Encode the support images of one class once, into a file that `predict` takes.

    \b
    Example:
      uino-deploy enroll demo.uino --shot a.jpg:a-mask.png --name bottle -o bottle.safetensors
      uino-deploy enroll demo.uino --shot a.jpg --shot b.jpg --coco annotations.json \\
          --name bottle -o bottle.safetensors
    """
    from uino_deploy.files import refuse_existing
    from uino_deploy.images import polygons_from_coco

    if category is not None and coco is None:
        raise click.UsageError("--category needs --coco")
    refuse_existing(output_path, force)
    masked: list[tuple[Path, Path | UInt8]] = []
    for shot in shots:
        if coco is None:
            masked.append(split_shot(shot))
        else:
            image = Path(shot)
            masked.append((image, polygons_from_coco(coco, image.name, category or name)))
    support = load(bundle).enroll(masked, name)
    support.save(output_path, force)
    count = output_path.stat().st_size
    plural = "s" if support.shots > 1 else ""
    output.text(f"{name}: {support.shots} shot{plural}, {size(count)}, {output_path}")
    output.document(
        {
            "support": str(output_path),
            "name": name,
            "shots": support.shots,
            "bytes": count,
            "precision": support.precision,
            "model": support.model,
            "fingerprint": support.fingerprint,
        }
    )


def split_shot(shot: str) -> tuple[Path, Path]:
    """Split `IMAGE:MASK` at the last colon that leaves two files: paths may hold colons.

    Raises:
        InputError: there is no colon, or no colon leaves two files.
    """
    colons = [index for index, character in enumerate(shot) if character == ":"]
    if not colons:
        raise InputError(f"shot {shot!r} has no mask", "write --shot IMAGE:MASK, or add --coco")
    for index in reversed(colons):
        image, mask = Path(shot[:index]), Path(shot[index + 1 :])
        if image.is_file() and mask.is_file():
            return image, mask
    image_name, _, mask_name = shot.rpartition(":")
    missing = mask_name if Path(image_name).is_file() else image_name
    raise InputError(f"shot {shot!r}: {missing!r} is not there", "write --shot IMAGE:MASK")
