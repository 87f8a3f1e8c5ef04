"""`uino-deploy precision`: forecast what each type does to a model, before a board is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, force_option, output_options
from uino_deploy.cli._signature import signature_option

if TYPE_CHECKING:
    from uino_deploy.export.forecast.results import Forecast
    from uino_deploy.export.forecast.rounding import Kind

_SHOWN = 5  # nodes of each type; the record has all


@click.command()
@click.argument("target", metavar="BUNDLE_OR_CHECKPOINT", type=FILE)
@click.option("--images", type=FILE, help="Folder of images to run on.  [default: drawn things]")
@click.option(
    "--shot",
    "shots",
    multiple=True,
    metavar="IMAGE:MASK",
    help="Support for --images. Repeatable.  [default: an ellipse in the image before]",
)
@click.option(
    "--type",
    "kinds",
    type=click.Choice(["fp16", "bf16", "tf32", "int8", "fp8"]),
    multiple=True,
    help="Type to forecast.  [default: all; repeatable]",
)
@click.option(
    "--most", type=click.IntRange(2, 64), default=4, show_default=True, help="Most images to run."
)
@click.option(
    "--min-mask-iou",
    "budget",
    type=FiniteRange(0, 1),
    default=0.99,
    show_default=True,
    help="Least IoU of the masks with float32's.",
)
@click.option(
    "--minutes",
    type=FiniteRange(0),
    default=30.0,
    show_default=True,
    help="Time after which what is left is skipped, and listed.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: one for each core]")
@click.option(
    "-o", "--output", "folder", type=FILE, help="Folder for the JSON record and the page."
)
@signature_option
@force_option
@output_options
def precision(
    target: Path,
    images: Path | None,
    shots: tuple[str, ...],
    kinds: tuple[Kind, ...],
    most: int,
    budget: float,
    minutes: float,
    threads: int | None,
    folder: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Forecast what float16, bfloat16, TF32, int8 and fp8 do to a model's masks; needs no GPU.

    Runs the float32 graphs, then again with one block, and in the worst blocks with one node,
    rounded as that type rounds; everything before it is kept. Names the nodes that overflow or
    bring the masks over the budget.

    \b
    Examples:
      uino-deploy precision model.uino -o build/precision
      uino-deploy precision vitb14.uino --images photos --shot bottle.jpg:bottle.png --minutes 10
    """
    import msgspec

    from uino_deploy.export.forecast.run import forecast
    from uino_deploy.runtime.shots import split_shot

    found = forecast(
        target,
        images=images,
        shots=[split_shot(shot) for shot in shots],
        kinds=kinds,
        most=most,
        budget=budget,
        minutes=minutes,
        threads=threads,
        output=folder,
        force=force,
        progress=output.log,
    )
    _show(found, output)
    if folder is not None:
        output.text(f"page and record: {folder}")
    output.document(msgspec.to_builtins(found))


def _show(found: Forecast, output: Output) -> None:
    from uino_deploy.export.forecast.tables import (
        block_rows,
        guilty_rows,
        heaviest_rows,
        remarks,
        whole_rows,
    )

    output.text(f"{found.bundle} ({found.preset}) on {', '.join(found.samples)}")
    output.text()
    output.table(*whole_rows(found))
    output.text()
    output.table(*block_rows(found))
    output.text()
    rows = guilty_rows(found, _SHOWN)
    if rows[1]:
        shown = len(rows[1])
        output.text(f"nodes that break the budget alone, {shown} of {len(found.guilty)}:")
        output.table(*rows)
    elif not any(node.effects for node in found.nodes):
        output.text("no node was tried")
    else:
        output.text("no node breaks the budget alone; those with the largest errors:")
        output.table(*heaviest_rows(found, _SHOWN))
    for line in remarks(found):
        output.text(line)
