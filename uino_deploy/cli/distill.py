"""`uino-deploy distill`: teach the bottleneck adapter Segment Anything's image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.cli._training import (
    Pace,
    Start,
    identity,
    narrator,
    pace_options,
    start_options,
)

if TYPE_CHECKING:
    from uino_deploy.training.processes import Processes
    from uino_deploy.training.teacher import Teacher

_LEARNED = ("adapter",)


@click.command()
@click.option("--images", "folder", type=FILE, required=True, metavar="DIR",
              help="Images to learn from, in any folders below.")  # fmt: skip
@click.option("--max-images", type=click.IntRange(min=1), help="Take so many, spread evenly.")
@click.option("--sam-checkpoint", type=FILE, required=True,
              help="The teacher: Segment Anything's ViT-B, L or H.")  # fmt: skip
@click.option("--cache", type=FILE, metavar="DIR",
              help="Where embeddings are kept.  [default: OUTPUT/embeddings]")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Of each of the three stages.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, required=True, metavar="DIR",
              help="The run's folder; the result is model.safetensors in it.")  # fmt: skip
@start_options
@pace_options(lr=1e-3, batch=16)
@force_option
@output_options
def distill(
    folder: Path,
    max_images: int | None,
    sam_checkpoint: Path,
    cache: Path | None,
    steps: int,
    path: Path,
    start: Start,
    pace: Pace,
    force: bool,
    output: Output,
) -> None:
    """Distil SAM's image encoder into the adapter, at three growing sizes of the student's input.

    Only the adapter learns. The teacher's embeddings are computed once and kept in checked files.
    Several GPUs, or processes, share the batch under torchrun. A killed run goes on with --resume
    and ends as if it had not been stopped.

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
    from uino_deploy.training.distillation import (
        Distillation,
        list_images,
        names_digest,
        stage_sizes,
    )
    from uino_deploy.training.loop import Engine, Schedule, last_losses, prepare_folder
    from uino_deploy.training.processes import join_processes
    from uino_deploy.training.runs import check_frozen, frozen_digest, save_result
    from uino_deploy.training.teacher import Teacher

    assembly = start.assemble(sam_checkpoint, pace.seed)
    model = assembly.model
    images = list_images(folder, max_images)
    sizes = stage_sizes(model.config)
    with join_processes() as processes:
        told = output if processes.first else Output(quiet=True)
        teacher = Teacher(sam_checkpoint, cache or path / "embeddings", processes.device)
        settings = {
            **identity(assembly),
            **pace.lasting,
            "steps": steps,
            "sizes": list(sizes),
            "teacher": teacher.fingerprint,
            "images": names_digest(images, folder),
        }
        prepare_folder(path, settings, pace.resume, force, processes)
        _fill_cache(teacher, images, processes, told)
        before = frozen_digest(model, _LEARNED)
        model.to(processes.device)
        task = Distillation(model, teacher, images, sizes, pace.batch, pace.seed, processes)
        schedule = Schedule((steps,) * len(sizes), pace.lr, pace.warmup, precision=pace.precision)
        engine = Engine(task, schedule, path, processes, pace.save_every)
        engine.run(narrator(told, len(sizes)))
        check_frozen(before, model, _LEARNED)
        if not processes.first:
            return
        saved = save_result(path, assembly, _LEARNED, "uino-deploy distill", settings)
    losses = last_losses(path, len(sizes))
    output.table(
        ["stage", "student", "images", "loss of its last steps"],
        [
            [stage + 1, f"{size} px", len(images), f"{losses[stage]:.5f}"]
            for stage, size in enumerate(sizes)
        ],
    )
    output.text(f"everything but the adapter is unchanged; wrote {saved}")
    output.document(
        {
            "checkpoint": str(saved),
            "sizes": list(sizes),
            "images": len(images),
            "losses": losses,
            "settings": settings,
        }
    )


def _fill_cache(
    teacher: Teacher, images: Sequence[Path], processes: Processes, output: Output
) -> None:
    """Ask the teacher for every image, so that no step waits for it; each process for its part."""
    own = images[processes.rank :: processes.count]
    with output.progress("embedding", len(own)) as done:
        for image in own:
            teacher.embedding(image)
            done()
    processes.wait()
