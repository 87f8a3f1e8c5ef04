"""`uino-deploy doctor`: report what is installed, what runs here, and how to fix the rest."""

from __future__ import annotations

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import output_options


@click.command()
@output_options
def doctor(output: Output) -> None:
    """Report what is installed, what runs, and how to fix the rest.

    Exits with 3 if installed packages are known to conflict: onnxruntime and onnxruntime-gpu
    together, or a NumPy version that TensorRT's bindings cannot use. A missing backend is not an
    error.

    \b
    Examples:
      uino-deploy doctor
      uino-deploy doctor --json
    """
    from uino_deploy.doctor import Diagnosis, diagnose

    def show(diagnosis: Diagnosis) -> None:
        output.text(
            f"uino-deploy {diagnosis.version}, Python {diagnosis.python}, {diagnosis.platform}"
        )
        if diagnosis.jetpack:
            output.text(f"Jetson: {diagnosis.jetpack}")
        output.text(f"GPU: {diagnosis.gpu or 'no NVIDIA GPU found'}")
        output.text(f"Operators in PyTorch: {diagnosis.kernels}")
        output.text(f"Native operators: {', '.join(diagnosis.native) or 'none'}")
        output.text()
        output.table(
            ["package", "version"],
            [[name, version or "not installed"] for name, version in diagnosis.packages.items()],
        )
        if diagnosis.providers:
            output.text(f"ONNX Runtime providers: {', '.join(diagnosis.providers)}")
            output.table(
                ["--provider", "here", "what to do"],
                [
                    [name, "-" if advice else "yes", advice]
                    for name, advice in diagnosis.provider_advice.items()
                ],
            )
        output.text()
        output.table(
            ["backend", "here", "what to do"],
            [
                [name, "runs" if status.runs else "-", status.advice]
                for name, status in diagnosis.backends.items()
            ],
        )
        output.text()
        output.table(
            ["extra", "for", "here", "what to do"],
            [
                [name, status.purpose, "-" if status.advice else "yes", status.advice]
                for name, status in diagnosis.extras.items()
            ],
        )
        output.text()

    diagnosis = diagnose()
    show(diagnosis)
    output.document({**diagnosis.to_dict(), "passed": not diagnosis.problems})
    for line in (*diagnosis.warnings, *diagnosis.problems):
        output.warn(line)
    output.verdict(diagnosis.problems, code=3)
