"""`uino-deploy kernels`: compile the operators' kernels for GPUs, and report on them."""

from __future__ import annotations

from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._group import SuggestingGroup
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._signature import signature_option, watching_signature

CUDA = click.option(
    "--cuda",
    default="12.6",
    show_default=True,
    help="Oldest CUDA release whose driver must accept the PTX: 12.6, 13.0 or 13.2.",
)


@click.group(cls=SuggestingGroup)
def kernels() -> None:
    """Compile the operators' kernels ahead of time; report on them."""


@kernels.command()
@click.option(
    "--arch", "archs", multiple=True, required=True, help="Architecture, such as sm_87. Repeatable."
)
@click.option(
    "--preset", "presets", multiple=True, help="Model to build for.  [default: all; repeatable]"
)
@CUDA
@click.option("-o", "--output", "folder", type=FILE, help="Folder to write.")
@click.option(
    "--bundle", "bundle", type=FILE, help="Bundle whose model to build for; the kernels go into it."
)
@signature_option
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
    """Write PTX, cubin and JSON for every kernel variant that the models need; needs no GPU.

    \b
    Examples:
      uino-deploy kernels build --arch sm_87 -o build/kernels
      uino-deploy kernels build --arch sm_110 --cuda 13.0 --preset vitb14 -o build/thor
      uino-deploy kernels build --arch sm_87 --bundle model.uino
    """
    from uino_deploy.bundle import MANIFEST
    from uino_deploy.errors import InputError
    from uino_deploy.kernels.compiler.install import build_folder, build_into
    from uino_deploy.kernels.compiler.targets import target

    if (folder is None) == (bundle is None):
        raise InputError("no output is given", "use either -o FOLDER or --bundle BUNDLE")
    if bundle is not None and presets:
        raise InputError("--preset cannot be combined with --bundle, which has its own model")
    targets = [target(arch, cuda) for arch in dict.fromkeys(archs)]
    if bundle is None:
        assert folder is not None
        compiled = build_folder(folder, targets, presets, force=force, progress=output.log)
    else:
        with watching_signature(bundle / MANIFEST, output):
            compiled = build_into(bundle, targets, force=force, progress=output.log)
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
    output.document({where: str(folder or bundle), "kernels": [k.record for k in compiled]})


@kernels.command()
@click.option("--preset", "presets", multiple=True, help="Model.  [default: vitb14; repeatable]")
@click.option("--arch", "archs", multiple=True, help="Architecture.  [default: sm_87; repeatable]")
@click.option(
    "--dtype", "dtypes", multiple=True, help="Element type.  [default: float16; repeatable]"
)
@click.option("--all", "everything", is_flag=True, help="All models, architectures and types.")
@click.option("--cuda", help="CUDA release.  [default: the oldest that supports the GPU]")
@click.option(
    "--kernels", "built", type=FILE, help="Use the kernels that `kernels build` wrote here."
)
@click.option("--journal", type=FILE, help="Cache of executed kernels to read and extend.")
@click.option("--load", type=FILE, help="Print these saved records; compile and execute nothing.")
@click.option("--save", type=FILE, help="Also write the records as JSON lines.")
@click.option("--html", type=FILE, help="Also write a page with plots.")
@click.option("--readme", type=FILE, help="Also update the tables in this Markdown file.")
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
    """Report each kernel's resources, work and memory traffic, counted by executing its PTX.

    Nothing is timed and no GPU is used. The floor is a lower bound on time, not a prediction.

    \b
    Examples:
      uino-deploy kernels report --json
      uino-deploy kernels report --arch sm_87 --arch sm_89 --html ledger.html
      uino-deploy kernels report --all --journal ledger.journal --save ledger.json
      uino-deploy kernels report --load benchmarks/ledger/ledger.json --html ledger.html
    """
    from uino_deploy.benchmarks.ledger.report import report_kernels
    from uino_deploy.benchmarks.ledger.rows import HEADER, rows

    records = report_kernels(
        presets,
        archs,
        dtypes,
        everything=everything,
        cuda=cuda,
        built=built,
        journal=journal,
        saved=load,
        save=save,
        html=html,
        readme=readme,
        force=force,
        progress=output.log,
    )
    output.table(HEADER, rows(records))
    output.document({"kernels": records})
