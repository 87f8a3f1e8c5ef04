"""`uino-deploy predict`: segment enrolled classes in images."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._backend import backend_options
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import force_option, output_options
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor, Support

RESULTS = "results.jsonl"
# More rows than this are left to the files.
TABLE_ROWS = 24


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--support",
    "supports",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="An enrolled class. Repeat it for more classes; an image is still encoded once.",
)
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder for masks, overlays and results.jsonl.",
)
@click.option("--overlay/--no-overlay", default=True, help="Draw the masks over the images.")
@click.option(
    "--threshold",
    type=float,
    default=0.0,
    show_default=True,
    help="Logits above it are foreground.",
)
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
    load: Callable[[Path], Predictor],
    force: bool,
    output: Output,
) -> None:
    """Segment enrolled classes in images: files, folders or globs.

    Writes masks/CLASS/NAME.png (0 and 255, at the image's own size), overlays/NAME.jpg, for several
    classes labels/NAME.png, and a JSON line per image into results.jsonl. If an image cannot be
    read, nothing is written. A mask's score is its predicted IoU, which may leave 0 to 1.

    \b
    Example:
      uino-deploy predict demo.uino photos/ --support bottle.safetensors -o found
      uino-deploy predict demo.uino 'photos/**/*.jpg' --support bottle.safetensors \\
          --support cup.safetensors -o found --json
    """
    from uino_deploy.files import atomic_directory
    from uino_deploy.images import check_image
    from uino_deploy.runtime.outputs import find_images

    images = find_images(inputs)
    with atomic_directory(output_path, force, marker=RESULTS) as folder:
        for image in images:
            check_image(image)
        predictor = load(bundle)
        classes = load_supports(supports, predictor)
        records = segment(predictor, images, classes, folder, overlay, threshold, output)
    report(output, output_path, records)
    output.document(
        {
            "bundle": str(bundle),
            "output": str(output_path),
            "threshold": threshold,
            **predictor.backend.describe(),
            "seconds_per_image": median_seconds(records),
            "images": records,
        }
    )


def load_supports(paths: Sequence[Path], predictor: Predictor) -> list[Support]:
    """Read support files and check that this bundle made them and that their names differ.

    Raises:
        InputError: a file is unreadable, another model's, or has the name of another one.
    """
    from uino_deploy.runtime import Support

    taken: dict[str, Path] = {}
    found = []
    for path in paths:
        support = Support.load(path)
        support.check(predictor.bundle.manifest)
        other = taken.setdefault(support.name.casefold(), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} both hold a class named {support.name!r}",
                "enroll one of them again under another name",
            )
        found.append(support)
    return found


def segment(
    predictor: Predictor,
    images: Sequence[Path],
    classes: Sequence[Support],
    folder: Path,
    overlay: bool,
    threshold: float,
    output: Output,
) -> list[dict[str, Any]]:
    """Segment the images and write everything into `folder`; return the lines of results.jsonl."""
    from uino_deploy.images import load_image
    from uino_deploy.runtime.outputs import output_names, write_results

    records = []
    with (
        open(folder / RESULTS, "w", encoding="utf-8") as lines,
        output.progress("segmenting", len(images)) as step,
    ):
        for path, name in zip(images, output_names(images), strict=True):
            image = load_image(path)
            start = time.perf_counter()
            results = predictor.predict(image, classes, threshold)
            seconds = time.perf_counter() - start
            written = write_results(folder, name, image, results, overlay)
            record = {"image": str(path), "seconds": round(seconds, 4), **written}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            records.append(record)
            step()
    return records


def report(output: Output, output_path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Say what was found: a table while it is short, and one line."""
    rows = [
        [record["image"], found["name"], round(found["score"], 3), f"{found['area']:.1%}"]
        for record in records
        for found in record["classes"]
    ]
    if len(rows) <= TABLE_ROWS:
        output.table(["image", "class", "score", "area"], rows)
    plural = "s" if len(records) > 1 else ""
    pace = median_seconds(records)
    output.text(f"{len(records)} image{plural}, {pace:.3f} s an image (median): {output_path}")


def median_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Return the median time of `Predictor.predict`; the first call also loads the pieces."""
    seconds: list[float] = [record["seconds"] for record in records]
    return round(statistics.median(seconds), 4)
