"""`uino-deploy export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, FiniteRange, force_option, output_options
from uino_deploy.config import PRESETS, VARIANTS, Variant
from uino_deploy.pipeline import PIECES, WHOLE

if TYPE_CHECKING:
    from uino_deploy.bundle import Decision


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
    metavar="[PIECE=]fp32|fp16|bf16|int8|fp8|auto",
    help=f"Precision of every piece, or of PIECE: {', '.join(PIECES)}. Repeatable; int8 and fp8 "
    "are for the encoder only, and fp8 for engines. auto chooses float16 or float32 for each node.",
)
@click.option(
    "--min-mask-iou",
    type=FiniteRange(0, 1),
    help="With --precision auto, least IoU of the masks with float32's.  [default: 0.99]",
)
@click.option(
    "--calibrate",
    type=FILE,
    help="Folder of images to calibrate int8 and fp8, or to choose types, on.  [default: "
    "photographs and demo scenes]",
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
    min_mask_iou: float | None,
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
      uino-deploy export --checkpoint model.safetensors --precision auto --min-mask-iou 0.99 \\
          -o model.uino
      uino-deploy export --checkpoint model.safetensors --precision fp16 \\
          --precision encoder=fp8 -o engine.uino
      uino-deploy export --preset tiny --seed 0 -o untrained.uino
    """
    import msgspec

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
        min_mask_iou=min_mask_iou,
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
    if manifest.decision is not None:
        _show_decision(manifest.decision, output)
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
            "decision": msgspec.to_builtins(manifest.decision),
            "untrained": untrained,
            "seconds": round(seconds, 2),
        }
    )


def _show_decision(decision: Decision, output: Output) -> None:
    """Say what share computes in which type, and which nodes stay float32 and why."""
    half = 100 * decision.half_flops
    output.text(f"float16: {half:.2f} % of the operations; float32: {100 - half:.2f} %")
    if decision.float32:
        output.table(
            ["stays float32", "layer", "why"],
            [[name, *why.split(": ", 1)] for name, why in decision.float32.items()],
        )
    output.text(
        f"forecast: logits differ by {decision.logits_error:.1e}, mask IoU "
        f"{decision.mask_iou:.4f}, at least {decision.min_mask_iou}"
    )
