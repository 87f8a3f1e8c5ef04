"""`uino-deploy triton-repository`: a model repository for Triton Inference Server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._signature import signature_option

if TYPE_CHECKING:
    from uino_deploy.serving.triton_repository import DeviceKind, TritonBackend


@click.command("triton-repository")
@click.argument("bundle", type=FILE)
@click.option(
    "--classes",
    required=True,
    type=FILE,
    help="Folder of the enrolled classes, by the path that the server sees.",
)
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "onnxruntime", "openvino"]),
    required=True,
    help="The server's backend that runs the pieces.",
)
@click.option(
    "-o", "--output", "output_path", required=True, type=FILE, help="Repository to write."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    help="Where the pieces run.  [default: gpu for tensorrt, else cpu]",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Instances of each piece.",
)
@click.option(
    "--shots",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Shots of a class that warm-up is for; with openvino no other number is taken.",
)
@click.option("--cuda-graphs", is_flag=True, help="Record and replay launches (tensorrt).")
@click.option("--arch", metavar="sm_XX", help="Architecture whose plans are taken (tensorrt).")
@signature_option
@force_option
@output_options
def triton_repository(
    bundle: Path,
    classes: Path,
    backend: TritonBackend,
    output_path: Path,
    device: DeviceKind | None,
    instances: int,
    shots: int,
    cuda_graphs: bool,
    arch: str | None,
    force: bool,
    output: Output,
) -> None:
    """Write a model repository for Triton Inference Server.

    Its model `segment` takes an image and a class's name and gives the mask's logits and its score.
    The classes' tensors stay on the server: the model `library` reads them from the folder, which
    `enroll` and `serve` fill.

    \b
    Examples:
      uino-deploy triton-repository demo.uino --classes /classes --backend onnxruntime -o models
      uino-deploy triton-repository vitb14.uino --classes /classes --backend tensorrt \\
          --cuda-graphs -o models
    """
    from uino_deploy.bundle import Bundle
    from uino_deploy.serving.triton_repository import write_repository

    written = write_repository(
        Bundle.open(bundle),
        classes,
        backend,
        output_path,
        device=device,
        instances=instances,
        shots=shots,
        cuda_graphs=cuda_graphs,
        arch=arch,
        force=force,
    )
    output.text(f"wrote {output_path}: {', '.join(written.models)}")
    output.text(shlex.join(written.command))
    for note in written.notes:
        output.text(note)
    output.document(
        {
            "repository": str(output_path),
            "models": list(written.models),
            "command": list(written.command),
            "notes": list(written.notes),
        }
    )
