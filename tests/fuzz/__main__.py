"""Attack the readers: `python -m tests.fuzz`, or `make fuzz`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from tests.fuzz.harness import attack, rerun
from tests.fuzz.parsers import PARSERS, PIXELS


@click.command()
@click.argument("names", metavar="PARSER...", nargs=-1, type=click.Choice(list(PARSERS)))
@click.option("--seed", type=int, help="Of the inputs; another one each time by default.")
@click.option("--minutes", type=float, default=30, show_default=True, help="For all parsers.")
@click.option("--inputs", type=click.IntRange(min=1), default=100_000, show_default=True,
              help="For each parser.")  # fmt: skip
@click.option(
    "--found", type=Path, default=Path("build/fuzz"), help="Where inputs that show a fault go."
)
@click.option("--rerun", "saved", type=Path, help="Read a saved input again, and nothing else.")
def fuzz(
    names: tuple[str, ...],
    seed: int | None,
    minutes: float,
    inputs: int,
    found: Path,
    saved: Path | None,
) -> None:
    """Give every reader damaged inputs; exit 1 for a fault, or for a reader that got none."""
    os.environ["UINO_DEPLOY_MAX_PIXELS"] = str(PIXELS)
    if saved is not None:
        report = rerun(PARSERS[saved.name.rpartition("-")[0]], saved)
        click.echo(report or "no fault any more")
        sys.exit(1 if report else 0)
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    click.echo(f"seed {seed}")
    end, faults, idle = time.monotonic() + 60 * minutes, list[str](), list[str]()
    chosen = names or tuple(PARSERS)
    for index, name in enumerate(chosen):
        # What a fast parser leaves of its time goes to those after it.
        share = (end - time.monotonic()) / (len(chosen) - index)
        tally = attack(name, PARSERS[name], seed, inputs, share, found)
        click.echo(str(tally))
        faults += tally.faults
        idle += [] if tally.inputs else [name]
    for fault in faults:
        click.echo((found / fault / "report.txt").read_text().split("\n\n")[0])
    if idle:
        click.echo(f"no input was read in the time: {', '.join(idle)}")
    sys.exit(1 if faults or idle else 0)


if __name__ == "__main__":
    fuzz()
