"""The PyTorch model behind a bundle, and exports of it in further precisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.export.checkpoints import Origin
from uino_deploy.pipeline import WHOLE


def saver(origin: Origin, bundle: Bundle) -> Callable[[Path, int], None] | None:
    """Return a function that writes the model's checkpoint; None if no origin is known."""
    if not origin.known:
        return None

    def save(path: Path, image_size: int) -> None:
        from uino_deploy.model.checkpoint import save_checkpoint

        save_checkpoint(origin.assemble(bundle, image_size).model, path, provenance={})

    return save


def in_precisions(
    bundles: Sequence[Bundle],
    wanted: Sequence[str],
    origin: Origin,
    folder: Path,
    log: Callable[[str], None],
) -> list[Bundle]:
    """Return bundles in the wanted precisions: the given ones, and exports of the missing ones.

    Args:
        bundles: the given bundles, one or more.
        wanted: precisions such as fp32; when empty, the given bundles are returned.
        origin: the checkpoints to export from.
        folder: receives the exported bundles.
        log: receives a line for each export.

    Raises:
        InputError: a precision is missing and cannot be exported.
        BuildError: an export failed.
    """
    if not wanted:
        return list(bundles)
    chosen = [bundle for bundle in bundles if "+".join(piece_precisions(bundle)) in wanted]
    known = {"+".join(piece_precisions(bundle)) for bundle in bundles}
    for precision in wanted:
        if precision not in known:
            chosen.append(_export(bundles[0], precision, origin, folder, log))
    return chosen


def piece_precisions(bundle: Bundle) -> list[str]:
    """Return the precisions of a bundle's pieces, each once, sorted."""
    pieces = bundle.manifest.pieces.items()
    return sorted({piece.precision for name, piece in pieces if name != WHOLE})


def _export(
    bundle: Bundle, precision: str, origin: Origin, folder: Path, log: Callable[[str], None]
) -> Bundle:
    if not origin.known:
        raise InputError(
            f"no given bundle is {precision}", "give one, or the checkpoint to export it from"
        )
    if "int8" in precision or "fp8" in precision:
        raise InputError(
            f"{precision} needs calibration images",
            "export it with --precision bf16 --precision encoder=int8 and name both bundles",
        )
    require("export", "torch", "onnx", "onnxscript")
    from uino_deploy.export import export_bundle
    from uino_deploy.export.precision import parse_precision

    pieces = parse_precision([precision])
    log(f"exporting {precision}")
    made = origin.assemble(bundle, bundle.config.image_size)
    return export_bundle(
        made.model,
        folder / f"{precision}.uino",
        precision=pieces,
        opset=bundle.manifest.opset,
        sources=made.sources,
        untrained=made.untrained,
        seed=made.seed,
    )
