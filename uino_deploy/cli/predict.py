"""`uino-deploy predict`: segment enrolled classes in images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._backend import backend_options, warned
from uino_deploy.cli._console import Output, fail
from uino_deploy.cli._options import FILE, FiniteRange, bits_option, force_option, output_options
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor

# A longer table is left to results.jsonl.
TABLE_ROWS = 24
_PRESENT = {True: "yes", False: "no", None: "-"}
# More errors are left to results.jsonl.
SHOWN_ERRORS = 5


@click.command()
@click.argument("bundle", type=FILE)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--support",
    "supports",
    multiple=True,
    required=True,
    type=FILE,
    help="Enrolled class. Repeatable; each image is encoded once for all classes.",
)
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=FILE,
    help="Folder for masks, overlays and results.jsonl.",
)
@click.option("--overlay/--no-overlay", default=True, help="Draw the masks over the images.")
@click.option(
    "--threshold",
    type=float,
    default=0.0,
    show_default=True,
    help="Logits above this are foreground.",
)
@click.option(
    "--min-score",
    type=FiniteRange(0, 1),
    default=0.5,
    show_default=True,
    help="Least presence of a class that counts as present. 0 keeps every mask.",
)
@click.option(
    "--instances",
    is_flag=True,
    help="Part the masks into objects; also write instances/ and instances.json.",
)
@bits_option
@click.option("--fail-fast", is_flag=True, help="Stop at the first image that fails; keep nothing.")
@backend_options
@force_option
@output_options
def predict(
    bundle: Path,
    inputs: tuple[str, ...],
    supports: tuple[Path, ...],
    output_path: Path,
    overlay: bool,
    threshold: float,
    min_score: float,
    instances: bool,
    bits: int | None,
    fail_fast: bool,
    load: Callable[[Path], Predictor],
    force: bool,
    output: Output,
) -> None:
    """Segment enrolled classes in images: files, folders or globs.

    Writes masks/CLASS/NAME.png (0 and 255, at the image's own size), overlays/NAME.jpg, for several
    classes labels/NAME.png, and one JSON line per image to results.jsonl. An image that fails is a
    line with its error, and the exit code is 1, or 2 if all fail. A score is the IoU that the model
    predicts for its mask; it can fall outside 0 to 1.

    Presence, 0 to 1, says how likely the image shows the class at all: one below --min-score is
    absent, and its mask is empty. --instances parts touching objects; instances/CLASS/NAME.png
    numbers them, and instances.json holds them all with boxes, areas, scores and run lengths, as
    COCO's tools read them.

    \b
    Examples:
      uino-deploy predict demo.uino photos/ --support bottle.safetensors -o found
      uino-deploy predict demo.uino 'photos/**/*.jpg' --support bottle.safetensors \\
          --support cup.safetensors -o found --json
      uino-deploy predict demo.uino photos/ --support bottle.safetensors --instances -o found
    """
    from uino_deploy.runtime import segment_folder
    from uino_deploy.runtime.batch import median_seconds

    predictor = warned(load, output)(bundle)
    records = segment_folder(
        predictor,
        inputs,
        supports,
        output_path,
        threshold=threshold,
        min_score=min_score,
        instances=instances,
        draw=overlay,
        force=force,
        bits=bits,
        fail_fast=fail_fast,
        progress=output.progress,
    )
    seconds = median_seconds(records)
    _show(output, output_path, records, seconds)
    output.document(
        {
            "bundle": str(bundle),
            "output": str(output_path),
            "threshold": threshold,
            "min_score": min_score,
            **predictor.backend.describe(),
            "seconds_per_image": seconds,
            "images": records,
        }
    )
    _conclude(output, output_path, records)


def _conclude(output: Output, output_path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Name the images that failed; leave with 1 if some did, with 2 if all did."""
    failed = [record["error"] for record in records if "error" in record]
    if len(failed) == len(records) == 1:
        raise InputError(failed[0])
    for error in failed[:SHOWN_ERRORS]:
        output.warn(error)
    if failed:
        of = f"{len(failed)} of {len(records)} images"
        output.warn(f"{of} failed: {output_path / 'results.jsonl'} has their errors")
        fail(2 if len(failed) == len(records) else 1)


def _show(
    output: Output, output_path: Path, records: Sequence[dict[str, Any]], seconds: float | None
) -> None:
    """Print a table if it is short, and one line; nothing if no image was segmented."""
    if seconds is None:
        return
    entries = [
        (record["image"], entry) for record in records for entry in record.get("classes", ())
    ]
    counted = any("instances" in entry for _, entry in entries)
    columns = ["image", "class", "present", "presence", "score", "area"]
    if counted:
        columns.append("objects")
    rows = [
        [
            image,
            entry["name"],
            _PRESENT[entry["present"]],
            "-" if entry["presence"] is None else f"{entry['presence']:.2f}",
            round(entry["score"], 3),
            f"{entry['area']:.1%}",
            *([len(entry["instances"])] if counted else ()),
        ]
        for image, entry in entries
    ]
    if len(rows) <= TABLE_ROWS:
        output.table(columns, rows)
        output.text("score: the IoU that the model predicts; it can fall outside 0 to 1")
    done = sum("classes" in record for record in records)
    plural = "s" if done > 1 else ""
    output.text(f"{done} image{plural}, {seconds:.3f} s an image (median): {output_path}")
