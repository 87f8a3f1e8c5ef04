"""`uino-deploy benchmark`: latency, memory and accuracy of every backend and peer, together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, force_option, output_options
from uino_deploy.cli._signature import signature_option

if TYPE_CHECKING:
    from uino_deploy.benchmarks.record import Record

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("bundles", type=FILE, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--backend", "backends", multiple=True, default=("onnxruntime",), show_default=True)
@click.option("--portable", is_flag=True,
              help="Also time onnxruntime and openvino without the native operators.")  # fmt: skip
@click.option(
    "--precision", "precisions", multiple=True, help="Also export in this precision.  [repeat]"
)
@click.option("--peers", default="none", show_default=True,
              help="Other ways to run the model: all, or some of torch, torch-bf16, compile, "
              "compile-bf16, onnx, onnx-openvino or onnx-openvino-bf16, by commas.")  # fmt: skip
@click.option("--checkpoint", type=FILE, help="The uino-deploy checkpoint that was exported.")
@click.option("--encoder-checkpoint", type=FILE, help="DINOv2 checkpoint, if it was exported.")
@click.option("--sam-checkpoint", type=FILE, help="SAM checkpoint, if it was exported.")
@click.option("--untrained", is_flag=True, help="The export used no checkpoint.")
@click.option(
    "--classes", multiple=True, type=_COUNT, default=(1,), help="Classes per query.  [repeat]"
)
@click.option("--shots", multiple=True, type=_COUNT, default=(1,),
              help="Support images per class.  [repeat]")  # fmt: skip
@click.option(
    "--batch", multiple=True, type=_COUNT, default=(1,), help="Queries per batch.  [repeat]"
)
@click.option("--threads", multiple=True, type=_COUNT, help="CPU threads.  [repeat; default: all]")
@click.option(
    "--images", type=FILE, help="Folder of photographs.  [default: from installed packages]"
)
@click.option(
    "--episodes", type=click.IntRange(min=0), help="Number of held-out episodes for mIoU."
)
@click.option("--rounds", type=_COUNT, default=5, show_default=True, help="Turns per runner.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True,
              help="Untimed queries per turn.")  # fmt: skip
@click.option(
    "--duration", type=FiniteRange(min=0), default=2.0, show_default=True, help="Seconds per turn."
)
@click.option("--iterations", type=_COUNT, help="Queries per turn, instead of --duration.")
@click.option("--cold-starts", type=click.IntRange(min=0), default=3, show_default=True,
              help="Timed starts in a fresh process.")  # fmt: skip
@click.option("--profile", is_flag=True, help="Also profile each layer and write traces.")
@click.option("--append", type=FILE, help="Also append rows to latency.csv in this folder.")
@click.option("-o", "--output", "folder", type=FILE, help="Folder for the record, page and traces.")
@signature_option
@force_option
@output_options
def benchmark(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    portable: bool,
    precisions: tuple[str, ...],
    peers: str,
    checkpoint: Path | None,
    encoder_checkpoint: Path | None,
    sam_checkpoint: Path | None,
    untrained: bool,
    classes: tuple[int, ...],
    shots: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    images: Path | None,
    episodes: int | None,
    rounds: int,
    warmup: int,
    duration: float,
    iterations: int | None,
    cold_starts: int,
    profile: bool,
    append: Path | None,
    folder: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Time bundles and other ways to run the model, with accuracy.

    Each runner has its own process, and the runners take turns, round after round. An entry over
    its error budget against float32 PyTorch is marked FAILED and not timed. Without a checkpoint,
    the error is measured on the example stored in the bundle, which needs no torch.

    \b
    Examples:
      uino-deploy benchmark model.uino
      uino-deploy benchmark model.uino --backend onnxruntime --backend openvino --precision fp32 \\
          --precision bf16 --peers all --checkpoint model.safetensors -o build/benchmark
      uino-deploy benchmark model.uino --classes 1 --classes 10 --batch 1 --batch 4 --profile
    """
    from uino_deploy.benchmarks import benchmark_bundles
    from uino_deploy.benchmarks.runners.table import peers_named
    from uino_deploy.export import Origin

    record = benchmark_bundles(
        bundles,
        backends=backends,
        portable=portable,
        precisions=precisions,
        peers=peers_named(peers),
        origin=Origin(checkpoint, encoder_checkpoint, sam_checkpoint, untrained),
        classes=classes,
        shots=shots,
        batch=batch,
        threads=threads,
        images=images,
        episodes=episodes,
        rounds=rounds,
        warmup=warmup,
        seconds=duration,
        iterations=iterations,
        cold_starts=cold_starts,
        profile=profile,
        output=folder,
        append=append,
        force=force,
        log=output.log,
        progress=output.progress,
    )
    _show(record, output)


def _show(record: Record, output: Output) -> None:
    import msgspec

    from uino_deploy.benchmarks.tables import (
        attention_lines,
        entry_rows,
        layer_rows,
        scaling_rows,
        situation,
    )

    for line in situation(record):
        output.text(line)
    output.text()
    output.table(*entry_rows(record))
    for header, rows in (scaling_rows(record), layer_rows(record)):
        if rows:
            output.text()
            output.table(header, rows)
    for line in attention_lines(record):
        output.text(line)
    output.text()
    output.document(msgspec.to_builtins(record))
    output.verdict(record.failures)
