"""`uino-deploy selftest`: check every claim that this machine can check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, force_option, output_options
from uino_deploy.cli._signature import signature_option

if TYPE_CHECKING:
    from uino_deploy.selftest import Report


@click.command()
@click.option("--gpu", is_flag=True, help="Check only what needs an NVIDIA GPU.")
@click.option("--bundle", type=FILE, help="Bundle to check.  [default: the demo's, exported now]")
@click.option("--kernels", type=FILE, help="Folder of kernels that `kernels build` wrote.")
@click.option(
    "--minutes",
    type=FiniteRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    help="Time limit. No claim starts after it; one that is still running fails.",
)
@click.option(
    "-o", "--output", "report_path", type=FILE, help="Also write the JSON document to this file."
)
@signature_option
@force_option
@output_options
def selftest(
    gpu: bool,
    bundle: Path | None,
    kernels: Path | None,
    minutes: float,
    report_path: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Check every claim that this machine can check.

    The claims are about operators, pieces, the whole model and backends. Each claim passes, fails,
    or is skipped; the output says what a skipped claim needs. The self-test passes if no claim
    failed and every group of claims whose packages are installed ran to its end. With --bundle it
    needs no torch: the bundle stores PyTorch's outputs. With --gpu on a machine without a GPU it
    lists the claims it could not check and exits with 3.

    \b
    Examples:
      uino-deploy selftest
      uino-deploy selftest --gpu -o selftest.json
      uino-deploy selftest --gpu --bundle model.uino --kernels build/kernels
    """
    import msgspec

    from uino_deploy.files import atomic_file, refuse_existing
    from uino_deploy.selftest import run_selftest

    if report_path is not None:
        refuse_existing(report_path, force)
    report = run_selftest(bundle, gpu, kernels, minutes, output.text)
    document = report.document()
    if report_path is not None:
        with atomic_file(report_path, force) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    output.document(document)
    _conclude(report, output)


def _conclude(report: Report, output: Output) -> None:
    """Print the counts and the verdict; exit with 3 without a GPU, with 1 on a failure."""
    counts = ", ".join(f"{report.count(v)} {v}" for v in ("passed", "failed", "skipped"))
    output.text()
    if report.gpu is not None:
        output.text(f"GPU: {report.gpu['name']} ({report.gpu['architecture']})")
    if report.required:
        output.text(f"required groups that ran: {', '.join(report.ran) or 'none'}")
    output.text(f"{counts} in {report.seconds:.0f} s")
    if report.without_gpu:
        output.verdict([f"nothing could be checked: {report.without_gpu}"], code=3)
    if not report.checked:
        output.verdict(
            ["nothing could be checked on this machine; the lines above say why"], code=3
        )
    failures = report.failures
    more = [f"{len(failures) - 3} more"] if len(failures) > 3 else []
    output.verdict(failures[:3] + more)
