"""`uino-deploy build`: build a bundle's pieces into TensorRT or TensorRT-RTX plans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._signature import signature_option, watching_signature

if TYPE_CHECKING:
    from uino_deploy.bundle import Bundle
    from uino_deploy.bundle.plans import EngineBackend, PlanInfo
    from uino_deploy.export.engines import Plugins

_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--backend", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True)
@click.option("--arch", required=True, metavar="sm_XX", help="GPU architecture to build for.")
@click.option("--piece", "pieces", multiple=True, help="Build only this piece. Repeatable.")
@click.option(
    "--shapes",
    multiple=True,
    metavar="NAME:MIN:OPT:MAX",
    help="Range of `batch` or `shots`.  [default: 1:1:1; repeatable]",
)
@click.option("--workspace", metavar="SIZE", help="Scratch memory, such as 512MiB or 2GiB.")
@click.option(
    "--tf32",
    is_flag=True,
    help="Let fp32 products round their operands to TF32: faster, and less exact than fp32.",
)
@click.option("--timing-cache", type=FILE, help="File of tactic timings to read and extend.")
@click.option(
    "--plugins",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="Build our operators as plugins where the backend supports them (auto), or from their "
    "portable ONNX functions (none).",
)
@click.option("--kernels", type=FILE, help="Folder of compiled kernels.  [default: the bundle's]")
@click.option(
    "--workaround",
    "workarounds",
    multiple=True,
    metavar="NAME",
    help="Work around this known miscompile; warnings name them. Repeatable.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check the graphs and print the plans; build nothing."
)
@click.option("--verbose", "-v", is_flag=True, help="Also print layers and trtexec lines.")
@signature_option
@force_option
@output_options
def build(
    bundle: Path,
    backend: EngineBackend,
    arch: str,
    pieces: tuple[str, ...],
    shapes: tuple[str, ...],
    workspace: str | None,
    tf32: bool,
    timing_cache: Path | None,
    plugins: Plugins,
    kernels: Path | None,
    workarounds: tuple[str, ...],
    dry_run: bool,
    verbose: bool,
    force: bool,
    output: Output,
) -> None:
    """Build TensorRT engines and add them to the bundle.

    Each engine is a plan file with a JSON file beside it. TensorRT-RTX builds for any of its
    architectures without a GPU. It has no plugins, so our operators are built from their
    portable ONNX functions. TensorRT builds for the GPU it runs on, with kernels from
    `uino-deploy kernels build` as plugins.

    Every engine is checked: its parsed network and, if this machine can load the engine,
    TensorRT's inspector and the results on the bundle's own example. If an engine has the wrong
    precision, lacks the requested plugins or gives wrong results, it is marked FAILED and nothing
    is installed. --verbose and --dry-run also print the trtexec and Polygraphy commands that build
    the same plans.

    \b
    Examples:
      uino-deploy build model.uino --backend tensorrt-rtx --arch sm_89
      uino-deploy build model.uino --backend tensorrt --arch sm_87 --dry-run
      uino-deploy build model.uino --backend tensorrt --arch sm_87 --shapes batch:1:1:4
      uino-deploy build model.uino --backend tensorrt --arch sm_87 --kernels build/kernels
    """
    from uino_deploy.bundle import MANIFEST, Bundle
    from uino_deploy.bundle.plans import plan_folder
    from uino_deploy.errors import CheckFailed
    from uino_deploy.export.engines import build_engines, parse_shapes, plan_engines

    opened = Bundle.open(bundle, replacing=plan_folder(backend, arch))
    sizes = parse_shapes(shapes)
    scratch = None if workspace is None else _bytes(workspace)
    if dry_run:
        planned = plan_engines(
            opened,
            backend,
            arch,
            pieces=pieces,
            shapes=sizes,
            workspace=scratch,
            tf32=tf32,
            plugins=plugins,
        )
        _show_planned(opened, planned, output)
        return
    try:
        with watching_signature(bundle / MANIFEST, output):
            infos = build_engines(
                opened,
                backend,
                arch,
                pieces=pieces,
                shapes=sizes,
                workspace=scratch,
                tf32=tf32,
                timing_cache=timing_cache,
                plugins=plugins,
                kernels=kernels,
                workarounds=workarounds,
                force=force,
                progress=output.log,
            )
    except CheckFailed as error:
        output.document({"bundle": str(bundle), "passed": False, "reason": str(error)})
        output.verdict([str(error)])
        raise
    made = Bundle.open(bundle, verify=False, replacing="plans", require_signature=False)
    _show(made, infos, verbose, output)


def _bytes(text: str) -> int:
    for unit, factor in _UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.isdigit() and int(number):
            return int(number) * factor
    raise click.UsageError(f"--workspace {text}: give a whole number of MiB or GiB, such as 512MiB")


def _show_planned(bundle: Bundle, infos: list[PlanInfo], output: Output) -> None:
    from uino_deploy.bundle.plans import equivalent_commands, plan_path

    for info in infos:
        how = ", the operators as plugins" if info.route == "ipluginv3" else ""
        output.text(f"{info.piece}: {info.precision}{how}, {plan_path(info)}")
    lines = equivalent_commands(bundle, infos)
    _show_lines(lines, output)
    paths = [plan_path(info) for info in infos]
    output.document({"bundle": str(bundle.root), "planned": paths, "equivalent": lines})


def _show(bundle: Bundle, infos: list[PlanInfo], verbose: bool, output: Output) -> None:
    """Print one line per plan; with `verbose`, also its layers and the other tools' commands."""
    import msgspec

    from uino_deploy.bundle.plans import equivalent_commands, plan_path

    rows = []
    for info in infos:
        megabytes = f"{bundle.manifest.files[plan_path(info)].size / 1e6:.1f}"
        output.text(
            f"{info.piece}: {info.precision}, {megabytes} MB in {info.seconds:.1f} s, "
            f"{plan_path(info)}"
        )
        if info.products:
            output.text(f"{info.piece}: the engine computes {_counts(info.products)} layers")
        row = [info.piece, info.precision, _counts(info.matrix_layers), _engine(info)]
        rows.append([*row, info.route, f"{info.seconds:.1f}", megabytes])
    if infos[0].backend == "tensorrt-rtx" and any(info.operators for info in infos):
        output.text(
            "operators: built from their portable ONNX functions; TensorRT-RTX has no plugins"
        )
    if any(info.engine is None for info in infos):
        output.text(f"engine: not inspected, because this machine has no {infos[0].arch} GPU")
    if any(info.engine and not info.engine.types for info in infos):
        output.text(
            "engine: the inspector names no types where sizes range; the parsed network was checked"
        )
    lines = equivalent_commands(bundle, infos)
    if verbose:
        columns = ["piece", "precision", "matrix layers", "engine", "operators", "seconds", "MB"]
        output.text()
        output.table(columns, rows)
        output.text()
        _show_lines(lines, output)
    plans = msgspec.to_builtins(infos)
    document = {"bundle": str(bundle.root), "passed": True, "plans": plans, "equivalent": lines}
    output.document(document)
    output.verdict([])


def _show_lines(lines: list[str], output: Output) -> None:
    if lines:
        output.text("equivalent commands; they write to the current folder, or load the plan:")
    for line in lines:
        output.text(f"  {line}")


def _counts(types: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items()))


def _engine(info: PlanInfo) -> str:
    """Return the engine's layers by type, and how many of the network's plugins it shows."""
    if info.engine is None:
        return "-"
    asked, shown = sum(info.plugins.values()), len(info.engine.plugins)
    plugins = f", {shown} of {asked} plugins seen" if asked else ""
    return _counts(info.engine.types) + plugins
