"""`uino-deploy kernels`: compile the operators for GPUs, and account for what they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options

if TYPE_CHECKING:
    from uino_deploy.kernels.compiler.build import Compiled
    from uino_deploy.kernels.compiler.targets import Target

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
@click.option("-o", "--output", "folder", type=FILE, help="Folder to write.")
@click.option("--bundle", "bundle", type=FILE, help="Bundle to add its own model's kernels to.")
@force_option
@output_options
def build(
    archs: tuple[str, ...],
    presets: tuple[str, ...],
    cuda: str,
    folder: Path | None,
    bundle: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Write PTX, cubin and a JSON for every kernel variant the models need. No GPU is needed.

    \b
    Examples:
      uino-deploy kernels build --arch sm_87 -o build/kernels
      uino-deploy kernels build --arch sm_110 --cuda 13.0 --preset vitb14 -o build/thor
      uino-deploy kernels build --arch sm_87 --bundle model.uino
    """
    from uino_deploy.errors import InputError
    from uino_deploy.kernels.compiler.targets import target

    if (folder is None) == (bundle is None):
        raise InputError("say where the kernels go", "either -o FOLDER or --bundle BUNDLE")
    if bundle is not None and presets:
        raise InputError("--preset does not go with --bundle, which has its own model")
    targets = [target(arch, cuda) for arch in dict.fromkeys(archs)]
    _known(presets)
    place = folder or bundle
    assert place is not None
    write = _build_folder if bundle is None else _build_into
    compiled = write(place, targets, presets, force, output)
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
    where = "bundle" if folder is None else "folder"
    output.document({where: str(place), "kernels": [k.record for k in compiled]})


def _build_folder(
    folder: Path, targets: list[Target], presets: tuple[str, ...], force: bool, output: Output
) -> list[Compiled]:
    from uino_deploy.files import atomic_directory
    from uino_deploy.kernels.compiler.build import compile_target, write

    compiled = []
    with atomic_directory(folder, force) as temporary:
        for goal in targets:
            output.log(f"compiling for {goal.arch}")
            compiled += compile_target(goal, presets or None)
        write(compiled, temporary)
    return compiled


def _build_into(
    root: Path, targets: list[Target], presets: tuple[str, ...], force: bool, output: Output
) -> list[Compiled]:
    from uino_deploy.bundle import Bundle
    from uino_deploy.kernels.compiler.build import compile_models
    from uino_deploy.kernels.compiler.install import install, refuse_present

    bundle = Bundle.open(root)
    if not force:
        refuse_present(bundle, [goal.arch for goal in targets])
    found = []
    for goal in targets:
        output.log(f"compiling for {goal.arch}")
        compiled = compile_models(goal, [bundle.config])
        install(root, goal.arch, compiled)
        found += compiled
    return found


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
      uino-deploy kernels report --load benchmarks/ledger/ledger.json --html ledger.html
    """
    from uino_deploy.benchmarks.ledger.markdown import renew
    from uino_deploy.benchmarks.ledger.page import ledger_page
    from uino_deploy.benchmarks.ledger.rows import HEADER, rows
    from uino_deploy.benchmarks.ledger.store import load as read_records
    from uino_deploy.benchmarks.ledger.store import select, text_of
    from uino_deploy.dependencies import require
    from uino_deploy.files import atomic_file
    from uino_deploy.markdown import rewrite

    if html is not None:
        require("pages", "jinja2", "matplotlib")
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
            temporary.write_text(ledger_page(records), encoding="utf-8")
    if readme is not None:
        rewrite(readme, lambda text: renew(text, records))
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
    from uino_deploy.benchmarks.ledger.journal import Journal
    from uino_deploy.benchmarks.ledger.report import Bench
    from uino_deploy.benchmarks.ledger.report import report as assemble
    from uino_deploy.kernels.compiler.build import read

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
