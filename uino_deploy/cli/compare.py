"""`uino-deploy compare`: find what became slower, larger or wrong between two records."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, output_options

if TYPE_CHECKING:
    from uino_deploy.benchmarks.compare import Change


@click.command()
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@click.option(
    "--margin",
    type=FiniteRange(min=0),
    default=10.0,
    show_default=True,
    help="How much worse a median may get, in per cent.",
)
@click.option("--all", "everything", is_flag=True, help="Also list figures that did not change.")
@output_options
def compare(before: Path, after: Path, margin: float, everything: bool, output: Output) -> None:
    """Compare two benchmark records; fail on a regression.

    A figure is a regression if its median is worse by more than the margin and the rounds of
    the two records do not overlap. Records of different methods, machines or models are refused.

    \b
    Examples:
      uino-deploy compare build/before/record.json build/after/record.json
      uino-deploy compare before.json after.json --margin 5 --json
    """
    from uino_deploy.benchmarks import compare_records, load_record

    comparison = compare_records(load_record(before), load_record(after), margin / 100)
    shown = [c for c in comparison.changes if everything or c.regression or c.improvement]
    if not shown:
        output.text("no figure changed by more than the margin and the spread")
    else:
        output.table(
            ["entry", "figure", "before", "after", "unit", "ratio", ""], [_row(c) for c in shown]
        )
    for name in comparison.missing:
        output.text(f"in one record only, not compared: {name}")
    for reason in comparison.broken:
        output.text(f"no longer passes: {reason}")
    output.document(
        {
            "verdict": "FAILED" if comparison.failures else "PASSED",
            "failures": comparison.failures,
            "margin_percent": margin,
            "changes": [asdict(change) for change in comparison.changes],
            "missing": comparison.missing,
        }
    )
    output.verdict(comparison.failures)


def _row(change: Change) -> list[str]:
    return [
        change.entry,
        change.what,
        f"{change.before:.4g}",
        f"{change.after:.4g}",
        change.unit,
        f"{change.ratio:.2f}",
        "REGRESSION" if change.regression else "better" if change.improvement else "",
    ]
