"""`uino-deploy demo`: export, verify and run the bundled model, with a report."""

from __future__ import annotations

from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options


@click.command()
@click.option(
    "-o",
    "--output",
    "target",
    type=FILE,
    default=Path("build/demo"),
    show_default=True,
    help="Folder to write.",
)
@force_option
@output_options
def demo(target: Path, force: bool, output: Output) -> None:
    """Export, verify and run the bundled model on unseen classes.

    Takes about a minute on two cores and downloads nothing. Writes the bundle, the enrolled
    classes, the queries, the masks and a report (report.html, report.json).

    \b
    Examples:
      uino-deploy demo
      uino-deploy demo -o build/demo --force --json
    """
    from uino_deploy.dependencies import require

    require("export", "torch", "onnx", "onnxscript", "onnxruntime")
    require("train", "matplotlib", "jinja2", "sklearn")
    from uino_deploy.demo import run_demo

    results = run_demo(target, output.log, output.progress, force=force)
    output.table(
        ["mIoU, per cent", "held-out classes", "handwritten digits"],
        [
            ["bundle", f"{results.bundle.miou:.2f}", f"{results.digits.miou:.2f}"],
            ["PyTorch", f"{results.reference.miou:.2f}", "-"],
            ["prototype baseline", f"{results.baseline:.2f}", "-"],
        ],
    )
    output.text(f"a query: {1000 * results.seconds_per_query:.1f} ms (median, CPU)")
    output.text(f"report: {target / 'report.html'}")
    output.document(results.document())
    output.verdict(results.failures)
