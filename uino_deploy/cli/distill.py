"""`uino-deploy distill`: teach the bottleneck adapter Segment Anything's image embedding."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._training import Start, run_options, start_options
from uino_deploy.training.schedule import DISTILLATION, RunOptions


@click.command()
@click.option("--images", type=FILE, required=True, metavar="DIR",
              help="Folder of images to learn from, including its subfolders.")  # fmt: skip
@click.option("--max-images", type=click.IntRange(min=1),
              help="Use at most this many images, evenly spaced.")  # fmt: skip
@click.option("--sam-checkpoint", type=FILE, required=True,
              help="The teacher: a SAM checkpoint, ViT-B, L or H.")  # fmt: skip
@click.option("--cache", type=FILE, metavar="DIR",
              help="Folder to cache embeddings in.  [default: OUTPUT/embeddings]")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Steps in each of the three stages.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, metavar="DIR",
              help="Folder of the run; it receives model.safetensors.")  # fmt: skip
@start_options
@run_options(DISTILLATION)
@force_option
@output_options
def distill(
    images: Path,
    max_images: int | None,
    sam_checkpoint: Path,
    cache: Path | None,
    steps: int,
    path: Path,
    start: Start,
    options: RunOptions,
    resume: bool,
    force: bool,
    output: Output,
) -> None:
    """Distil SAM's image encoder into the adapter.

    Only the adapter is trained, in three stages of growing input size. The teacher computes each
    embedding once; cached embeddings are checked whenever they are read. Several GPUs, or
    processes, share the batch under torchrun. A killed run continues with --resume and ends with
    the result of an uninterrupted run.

    \b
    Examples:
      uino-deploy distill --images photos --preset vitb14 \\
          --encoder-checkpoint dinov2_vitb14_pretrain.pth \\
          --sam-checkpoint sam_vit_h_4b8939.pth -o distilled --precision bf16
      uino-deploy distill ... -o distilled --resume
      torchrun --nproc-per-node 4 -m uino_deploy distill ... -o distilled
    """
    from uino_deploy.dependencies import require

    require("train", "torch")
    from uino_deploy import training
    from uino_deploy.training.processes import is_first_process

    result = training.distill(
        start.assemble(sam_checkpoint, options.seed),
        images,
        sam_checkpoint,
        path,
        options,
        steps=steps,
        max_images=max_images,
        cache=cache,
        resume=resume,
        force=force,
        reporter=output,
    )
    if not is_first_process():
        return
    output.table(
        ["stage", "student", "images", "loss of its last steps"],
        [
            [stage, f"{size} px", result.images, f"{loss:.5f}"]
            for stage, (size, loss) in enumerate(
                zip(result.sizes, result.losses, strict=True), start=1
            )
        ],
    )
    output.text(f"everything but the adapter is unchanged; wrote {result.checkpoint}")
    output.document(
        {**asdict(result), "checkpoint": str(result.checkpoint), "sizes": list(result.sizes)}
    )
