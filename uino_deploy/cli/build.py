"""`uino-deploy build`: a bundle's pieces to TensorRT or TensorRT-RTX plans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options

if TYPE_CHECKING:
    from uino_deploy.bundle import Bundle
    from uino_deploy.plans import EngineBackend, PlanInfo

_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--backend", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True)
@click.option("--arch", required=True, metavar="sm_XX", help="Compute capability to build for.")
@click.option("--piece", "pieces", multiple=True, help="Only this piece; repeatable.")
@click.option(
    "--shapes",
    multiple=True,
    metavar="NAME:MIN:OPT:MAX",
    help="Sizes of `batch` or `shots`; 1 for each by default. Repeatable.",
)
@click.option("--workspace", metavar="SIZE", help="Scratch memory, such as 512MiB or 2GiB.")
@click.option("--timing-cache", type=FILE, help="A file of tactic timings to use and extend.")
@force_option
@output_options
def build(
    bundle: Path,
    backend: EngineBackend,
    arch: str,
    pieces: tuple[str, ...],
    shapes: tuple[str, ...],
    workspace: str | None,
    timing_cache: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Build engines and add them to the bundle as plain plan files, each with a side JSON.

    TensorRT-RTX builds for any of its architectures without a GPU. TensorRT builds for the GPU of
    the machine it runs on. The correlation and the scan are built from their bodies in standard
    operators.

    \b
    Examples:
      uino-deploy build model.uino --backend tensorrt-rtx --arch sm_89
      uino-deploy build model.uino --backend tensorrt --arch sm_87 --shapes batch:1:1:4
    """
    from uino_deploy.bundle import Bundle
    from uino_deploy.export.engines import build_engines, parse_shapes

    opened = Bundle.open(bundle)
    infos = build_engines(
        opened,
        backend,
        arch,
        pieces=pieces,
        shapes=parse_shapes(shapes),
        workspace=None if workspace is None else _bytes(workspace),
        timing_cache=timing_cache,
        force=force,
        progress=output.log,
    )
    _show(Bundle.open(bundle, verify=False), infos, output)


def _bytes(text: str) -> int:
    for unit, factor in _UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.isdigit() and int(number):
            return int(number) * factor
    raise click.UsageError(f"--workspace {text}: give a whole number of MiB or GiB, as in 512MiB")


def _show(bundle: Bundle, infos: list[PlanInfo], output: Output) -> None:
    import msgspec

    from uino_deploy.plans import equivalent_commands, plan_path

    rows = []
    for info in infos:
        size = bundle.manifest.files[plan_path(info)].size
        types = ", ".join(f"{count} {name}" for name, count in sorted(info.layers.items()))
        rows.append([info.piece, info.precision, types, info.route, f"{size / 1e6:.1f}"])
    output.table(["piece", "precision", "layers by type", "operators", "MB"], rows)
    output.text()
    for line in equivalent_commands(bundle, infos):
        output.text(line)
    output.document({"bundle": str(bundle.root), "plans": msgspec.to_builtins(infos)})
    output.verdict([])
