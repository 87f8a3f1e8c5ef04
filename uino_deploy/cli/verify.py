"""`uino-deploy verify`: compare a bundle with PyTorch, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._backend import backend_options
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, output_options
from uino_deploy.pipeline import WHOLE

if TYPE_CHECKING:
    from uino_deploy.export.verify import VerifyReport
    from uino_deploy.runtime import Predictor


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--checkpoint", type=FILE, help="The uino-deploy checkpoint that was exported.")
@click.option("--encoder-checkpoint", type=FILE, help="DINOv2 checkpoint, if it was exported.")
@click.option("--sam-checkpoint", type=FILE, help="SAM checkpoint, if it was exported.")
@click.option("--untrained", is_flag=True, help="The export used no checkpoint.")
@click.option("--query", type=FILE, help="Image to compare on.  [default: generated images]")
@click.option(
    "--shot", "shots", multiple=True, metavar="IMAGE:MASK", help="Support for --query. Repeatable."
)
@backend_options
@output_options
def verify(
    bundle: Path,
    checkpoint: Path | None,
    encoder_checkpoint: Path | None,
    sam_checkpoint: Path | None,
    untrained: bool,
    query: Path | None,
    shots: tuple[str, ...],
    load: Callable[[Path], Predictor],
    output: Output,
) -> None:
    """Compare a bundle with PyTorch and name the piece at fault.

    Each piece is checked twice: its outputs against PyTorch's, and the final mask when only this
    piece is exported and the others run in PyTorch. Without a checkpoint, the reference is the
    PyTorch outputs stored in the bundle: this needs no torch, so a device can check itself.

    \b
    Examples:
      uino-deploy verify model.uino --checkpoint model.safetensors
      uino-deploy verify vitb14.uino --encoder-checkpoint dinov2_vitb14_pretrain.pth \\
          --sam-checkpoint sam_vit_b_01ec64.pth
      uino-deploy verify model.uino
    """
    parts = encoder_checkpoint is not None or sam_checkpoint is not None or untrained
    if checkpoint is not None and parts:
        raise click.UsageError(
            "--checkpoint holds the whole model: give no other checkpoint with it"
        )
    if (query is None) != (not shots):
        raise click.UsageError("--query and --shot go together")
    if query is not None and checkpoint is None and not parts:
        raise click.UsageError("--query needs the model to compare with, such as --checkpoint")
    from uino_deploy.export import Origin, verify_bundle
    from uino_deploy.runtime.shots import split_shot

    predictor = load(bundle)
    origin = Origin(checkpoint, encoder_checkpoint, sam_checkpoint, untrained)
    report = verify_bundle(
        predictor.bundle,
        predictor.backend,
        origin.assemble(predictor.bundle).model if origin.known else None,
        [] if query is None else [(query, [split_shot(shot) for shot in shots])],
        output.log,
    )
    _show(report, output)


def _show(report: VerifyReport, output: Output) -> None:
    import msgspec

    against = "PyTorch" if report.reference == "pytorch" else "PyTorch's stored outputs"
    plural = "s" if report.examples > 1 else ""
    wrong_operators = [compared for compared in report.operators if not compared.passed]
    output.text(f"{report.bundle} against {against}, {report.examples} example{plural}")
    output.text()
    output.table(
        ["output", "max abs", "relative L2", "allowed", "cosine", ""],
        [
            [
                f"{compared.piece}.{compared.output}",
                f"{compared.max_abs:.2e}",
                f"{compared.relative_l2:.2e}",
                f"{compared.allowed:.0e}",
                f"{compared.cosine:.7f}",
                "" if compared.passed else "FAILED",
            ]
            for compared in (*report.pieces, *wrong_operators)
        ],
    )
    output.text()
    output.table(
        ["one piece exported", "logits relative L2", "allowed", "mask IoU", "at least", ""],
        [
            [
                "all pieces" if swap.piece == WHOLE else swap.piece,
                f"{swap.logits_relative_l2:.2e}",
                f"{swap.logits_allowed:.0e}",
                f"{swap.mask_iou:.4f}",
                f"{swap.iou_floor:.3f}",
                "" if swap.passed else "FAILED",
            ]
            for swap in report.swaps
        ],
    )
    output.text()
    if report.guilty:
        output.text(f"at fault: {', '.join(report.guilty)}")
    output.document(msgspec.to_builtins(report))
    output.verdict([] if report.passed else [report.reason])
