"""`uino-deploy kernels`: compile the operators for GPUs, and account for what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options

CUDA = click.option(
    "--cuda",
    default="12.6",
    show_default=True,
    help="The oldest CUDA release whose driver must take the PTX: 12.6, 13.0 or 13.2.",
)


@click.group()
def kernels() -> None:
    """Compile the two operators' kernels ahead of time, and report on them."""


@kernels.command()
@click.option("--arch", "archs", multiple=True, required=True, help="sm_87, sm_110, ...; repeat.")
@click.option("--preset", "presets", multiple=True, help="Models to build for; default all.")
@CUDA
@click.option("-o", "--output", "folder", type=FILE, required=True, help="Folder to write.")
@force_option
@output_options
def build(
    archs: tuple[str, ...],
    presets: tuple[str, ...],
    cuda: str,
    folder: Path,
    force: bool,
    output: Output,
) -> None:
    """Write PTX, cubin and a JSON for every kernel variant the presets need. No GPU is needed.

    \b
    Examples:
      uino-deploy kernels build --arch sm_87 -o build/kernels
      uino-deploy kernels build --arch sm_110 --cuda 13.0 --preset vitb14 -o build/thor
    """
    from uino_deploy.files import atomic_directory
    from uino_deploy.kernels.compiler.build import compile_target, write
    from uino_deploy.kernels.compiler.targets import target

    targets = [target(arch, cuda) for arch in dict.fromkeys(archs)]
    _known(presets)
    compiled = []
    with atomic_directory(folder, force) as temporary:
        for goal in targets:
            output.log(f"compiling for {goal.arch}")
            compiled += compile_target(goal, list(presets) or None)
        write(compiled, temporary)
    output.table(
        ["kernel", "registers", "spilled", "shared", "plugin"],
        [
            [
                k.name,
                str(k.record["registers"]),
                str(k.record["spill_bytes"]),
                str(k.record["shared_bytes"]),
                "yes" if k.record["plugin"] else "no",
            ]
            for k in compiled
        ],
    )
    output.document({"folder": str(folder), "kernels": [k.record for k in compiled]})


@kernels.command()
@click.option("--preset", "presets", multiple=True, help="Models; default vitb14.")
@click.option("--arch", "archs", multiple=True, help="Architectures; default sm_87.")
@click.option("--dtype", "dtypes", multiple=True, help="Element types; default float16.")
@click.option("--all", "everything", is_flag=True, help="Every model, architecture and type.")
@click.option("--cuda", help="CUDA release to compile for; default the oldest that knows the GPU.")
@click.option("--kernels", "built", type=FILE, help="Take what kernels build wrote here.")
@click.option("--journal", type=FILE, help="Note what was executed here, and take it from here.")
@click.option("--load", type=FILE, help="Compile and execute nothing: print these saved records.")
@click.option("--save", type=FILE, help="Also write the records, one JSON line each.")
@click.option("--html", type=FILE, help="Also write a page with plots.")
@click.option("--readme", type=FILE, help="Also renew the tables in this Markdown file.")
@force_option
@output_options
def report(
    presets: tuple[str, ...],
    archs: tuple[str, ...],
    dtypes: tuple[str, ...],
    everything: bool,
    cuda: str | None,
    built: Path | None,
    journal: Path | None,
    load: Path | None,
    save: Path | None,
    html: Path | None,
    readme: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Say what each kernel holds, computes and moves: counted by executing its PTX.

    Nothing is timed: no GPU is used. The floor is what no kernel can beat, not a prediction.

    \b
    Examples:
      uino-deploy kernels report --json
      uino-deploy kernels report --arch sm_87 --arch sm_89 --html ledger.html
      uino-deploy kernels report --all --journal ledger.journal --save ledger.json
      uino-deploy kernels report --load kernels/ledger/ledger.json --html ledger.html
    """
    from uino_deploy.files import atomic_file
    from uino_deploy.kernels.ledger.markdown import renew
    from uino_deploy.kernels.ledger.page import page
    from uino_deploy.kernels.ledger.rows import HEADER, rows
    from uino_deploy.kernels.ledger.store import load as read_records
    from uino_deploy.kernels.ledger.store import select, text_of

    _known(presets)
    _known_types(dtypes)
    if load is not None:
        records = select(read_records(load), list(presets), list(archs), list(dtypes))
    else:
        wanted = _everything() if everything else ([], [], [])
        given = [list(presets), list(archs), list(dtypes)]
        usual = (["vitb14"], ["sm_87"], ["float16"])
        chosen = [g or w or u for g, w, u in zip(given, wanted, usual, strict=True)]
        records = _count(chosen, cuda, built, journal, output)
    output.table(HEADER, rows(records))
    if save is not None:
        with atomic_file(save, force) as temporary:
            temporary.write_text(text_of(records), encoding="utf-8")
    if html is not None:
        with atomic_file(html, force) as temporary:
            temporary.write_text(page(records), encoding="utf-8")
    if readme is not None:
        text = renew(readme.read_text(encoding="utf-8"), records)
        with atomic_file(readme, True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    output.document({"kernels": records})


def _everything() -> tuple[list[str], list[str], list[str]]:
    from uino_deploy.config import PRESETS
    from uino_deploy.kernels.compiler.targets import ARCHITECTURES
    from uino_deploy.kernels.compiler.variants import DTYPES

    return list(PRESETS), list(ARCHITECTURES), list(DTYPES)


def _count(
    chosen: list[list[str]],
    cuda: str | None,
    built: Path | None,
    journal: Path | None,
    output: Output,
) -> list[dict[str, Any]]:
    from uino_deploy.kernels.compiler.build import read
    from uino_deploy.kernels.ledger.journal import Journal
    from uino_deploy.kernels.ledger.report import Bench
    from uino_deploy.kernels.ledger.report import report as assemble

    presets, archs, dtypes = chosen
    kernels = [] if built is None else read(built)
    bench = Bench(presets, cuda, kernels, Journal(journal), output.log)
    return list(assemble(bench, presets, archs, dtypes))


def _known(presets: tuple[str, ...]) -> None:
    from uino_deploy.config import UinoConfig

    for preset in presets:
        UinoConfig.from_preset(preset)


def _known_types(dtypes: tuple[str, ...]) -> None:
    from uino_deploy.errors import InputError
    from uino_deploy.kernels.compiler.variants import DTYPES

    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"unknown type {dtype!r}", f"choose from {', '.join(DTYPES)}")
