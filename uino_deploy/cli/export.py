"""`uino-deploy export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import time
from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.config import PRESETS, VARIANTS, Variant
from uino_deploy.pipeline import PIECES, WHOLE


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
    metavar="[PIECE=]fp32|fp16|bf16|int8|fp8",
    help=f"Precision of every piece, or of PIECE: {', '.join(PIECES)}. Repeatable; int8 and fp8 "
    "are for the encoder only, and fp8 for engines.",
)
@click.option(
    "--calibrate",
    type=FILE,
    help="Folder of images to calibrate int8 and fp8 on.  [default: photographs and demo scenes]",
)
@click.option(
    "--opset", type=int, help="ONNX opset.  [default: 18, or 19 for fp8 and for int8 beside fp16]"
)
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
    variant: Variant | None,
    image_size: int | None,
    precisions: tuple[str, ...],
    calibrate: Path | None,
    opset: int | None,
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
      uino-deploy export --checkpoint model.safetensors --precision fp16 \\
          --precision encoder=fp8 -o engine.uino
      uino-deploy export --preset tiny --seed 0 -o untrained.uino
    """
    from uino_deploy.export import export_checkpoint

    begun = time.perf_counter()
    bundle = export_checkpoint(
        target,
        checkpoint=checkpoint,
        preset=preset,
        encoder_checkpoint=encoder_checkpoint,
        sam_checkpoint=sam_checkpoint,
        seed=seed,
        variant=variant,
        image_size=image_size,
        precision=precisions,
        calibrate=calibrate,
        opset=opset,
        max_batch=max_batch,
        max_shots=max_shots,
        force=force,
        progress=output.log,
    )
    seconds = time.perf_counter() - begun
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    untrained = manifest.provenance.untrained
    if untrained:
        output.warn(f"UNTRAINED, random weights: {', '.join(untrained)}")
    output.text(f"wrote {target} ({size / 1e6:.1f} MB) in {seconds:.1f} s")
    output.document(
        {
            "bundle": str(target),
            "bytes": size,
            "fingerprint": manifest.fingerprint,
            "opset": manifest.opset,
            "precision": {
                name: piece.precision for name, piece in manifest.pieces.items() if name != WHOLE
            },
            "untrained": untrained,
            "seconds": round(seconds, 2),
        }
    )
