"""`uino-deploy export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.config import PRESETS, VARIANTS, UinoConfig, Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@click.command()
@click.option("--checkpoint", type=FILE, help="A uino-deploy checkpoint.")
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), help="Build this model from published weights."
)
@click.option("--encoder-checkpoint", type=FILE, help="DINOv2 checkpoint, .pth or .safetensors.")
@click.option("--sam-checkpoint", type=FILE, help="SAM checkpoint for the mask decoder, .pth.")
@click.option("--seed", type=int, help="Seed for weights without a checkpoint.  [default: 0]")
@click.option(
    "--variant", type=click.Choice(VARIANTS), help="Variant of the preset.  [default: full]"
)
@click.option("--image-size", type=int, help="Image side in pixels.  [default: the model's]")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="[PIECE=]fp32|fp16|bf16|int8",
    help="Precision of every piece, or of PIECE: encoder, adapter, support, prompt or decoder. "
    "Repeatable; int8 is for the encoder only.",
)
@click.option(
    "--calibrate",
    type=FILE,
    help="Folder of images to calibrate int8 on.  [default: photographs and demo scenes]",
)
@click.option("--opset", type=int, default=18, show_default=True, help="ONNX opset.")
@click.option("--max-shots", type=int, help="Largest number of support images a class may have.")
@click.option("--max-batch", type=int, help="Largest query batch.")
@click.option(
    "-o", "--output", "target", type=FILE, required=True, help="Bundle to write, NAME.uino."
)
@force_option
@output_options
def export(
    checkpoint: Path | None,
    preset: str | None,
    encoder_checkpoint: Path | None,
    sam_checkpoint: Path | None,
    seed: int | None,
    variant: str | None,
    image_size: int | None,
    precisions: tuple[str, ...],
    calibrate: Path | None,
    opset: int,
    max_shots: int | None,
    max_batch: int | None,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Export a model piece by piece to ONNX and write a bundle.

    The model comes from a uino-deploy checkpoint, or from a preset with published weights. Parts
    without a checkpoint get seeded random weights; the output and the bundle list them as
    untrained.

    \b
    Examples:
      uino-deploy export --checkpoint model.safetensors -o model.uino
      uino-deploy export --checkpoint model.safetensors --precision fp16 \\
          --precision encoder=fp32 -o model.uino
      uino-deploy export --preset vitb14 --encoder-checkpoint dinov2_vitb14_pretrain.pth \\
          --sam-checkpoint sam_vit_b_01ec64.pth --seed 0 -o vitb14.uino
      uino-deploy export --checkpoint model.safetensors --precision bf16 \\
          --precision encoder=int8 --calibrate photographs -o model.uino
      uino-deploy export --preset tiny --seed 0 -o untrained.uino
    """
    from uino_deploy.dependencies import require

    parts = {
        "--encoder-checkpoint": encoder_checkpoint,
        "--sam-checkpoint": sam_checkpoint,
        "--seed": seed,
        "--variant": variant,
    }
    _check_sources(checkpoint, preset, [name for name, value in parts.items() if value is not None])
    require("export", "torch", "onnx", "onnxscript")
    from uino_deploy.export import export_bundle
    from uino_deploy.export.precision import parse_precision
    from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

    precision = parse_precision(precisions)
    if calibrate is not None and "int8" not in precision.values():
        raise click.UsageError("--calibrate goes with --precision encoder=int8")
    calibration = _calibration(calibrate) if "int8" in precision.values() else []
    begun = time.perf_counter()
    if checkpoint is not None:
        made = assemble_from_checkpoint(checkpoint, image_size)
    else:
        config = UinoConfig.from_preset(
            cast("str", preset), cast("Variant", variant or "full"), image_size
        )
        made = assemble_from_parts(config, encoder_checkpoint, sam_checkpoint, seed or 0)
    bundle = export_bundle(
        made.model,
        target,
        precision=precision,
        opset=opset,
        max_shots=max_shots,
        max_batch=max_batch,
        sources=made.sources,
        untrained=made.untrained,
        seed=made.seed,
        force=force,
        calibration=calibration,
        progress=output.log,
    )
    size = sum(entry.size for entry in bundle.manifest.files.values())
    seconds = time.perf_counter() - begun
    if made.untrained:
        output.warn(f"UNTRAINED, random weights: {', '.join(made.untrained)}")
    output.text(f"wrote {target} ({size / 1e6:.1f} MB) in {seconds:.1f} s")
    output.document(
        {
            "bundle": str(target),
            "bytes": size,
            "fingerprint": bundle.manifest.fingerprint,
            "opset": opset,
            "precision": precision,
            "untrained": list(made.untrained),
            "seconds": round(seconds, 2),
        }
    )


def _calibration(folder: Path | None) -> list[NDArray[np.uint8]]:
    if folder is None:
        from uino_deploy.data.calibration import calibration_images

        return calibration_images()
    from uino_deploy.images import load_image
    from uino_deploy.runtime.batch import find_images

    return [load_image(path) for path in find_images([str(folder)])]


def _check_sources(checkpoint: Path | None, preset: str | None, parts: list[str]) -> None:
    """Refuse sources of weights that contradict each other."""
    if (checkpoint is None) == (preset is None):
        raise click.UsageError("give either --checkpoint or --preset")
    if checkpoint is not None and parts:
        raise click.UsageError(f"{parts[0]} goes with --preset: a --checkpoint says it itself")
