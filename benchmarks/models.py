"""The PyTorch model behind a bundle, and bundles of it in further precisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable, require
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.files import sha256
from uino_deploy.pipeline import WHOLE

if TYPE_CHECKING:
    from uino_deploy.model.assembly import Assembly


@dataclass(frozen=True)
class Origin:
    """The checkpoints that a bundle was exported from.

    Attributes:
        checkpoint: one of our own, the whole model; excludes the others.
        encoder: DINOv2's.
        sam: Segment Anything's.
        untrained: there was no checkpoint at all.
    """

    checkpoint: Path | None = None
    encoder: Path | None = None
    sam: Path | None = None
    untrained: bool = False

    @property
    def known(self) -> bool:
        """Whether anything was named."""
        return bool(self.checkpoint or self.encoder or self.sam or self.untrained)

    def or_bundled(self, bundle: Bundle) -> Origin:
        """Return this, or where nothing was named the package's own checkpoint, if it is it."""
        if self.known or not is_importable("torch"):
            return self
        import uino_deploy.assets

        asset = Path(uino_deploy.assets.__file__ or "").parent / "tiny.safetensors"
        hashes = {source.sha256 for source in bundle.manifest.provenance.sources}
        return Origin(checkpoint=asset) if sha256(asset) in hashes else self

    def assemble(self, bundle: Bundle, image_size: int) -> Assembly:
        """Build the model that a bundle was exported from, at an image size.

        Raises:
            CheckpointError: a file is unreadable or of another architecture.
            CheckFailed: it is not the bundle's model.
        """
        require("export", "torch")
        from uino_deploy.export.exporter import fingerprint
        from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

        if self.checkpoint is not None:
            made = assemble_from_checkpoint(self.checkpoint, image_size)
        else:
            config = replace(bundle.config, image_size=image_size)
            seed = bundle.manifest.provenance.seed or 0
            made = assemble_from_parts(config, self.encoder, self.sam, seed)
        other_size = image_size != bundle.config.image_size
        if not other_size and fingerprint(made.model) != bundle.manifest.fingerprint:
            raise CheckFailed(
                f"{bundle.root} was not exported from this model: their fingerprints differ",
                "name the checkpoint that was exported",
            )
        return made


def saver(origin: Origin, bundle: Bundle) -> Callable[[Path, int], None] | None:
    """Return what writes the model's checkpoint for an image size; None where none was named."""
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
    """Return bundles of the wanted precisions: those given, and the others exported here.

    Args:
        bundles: what was given.
        wanted: precisions such as fp32; what was given when empty.
        origin: the checkpoints to export from.
        folder: receives the exported bundles.
        log: receives a line for each export.

    Raises:
        InputError: a precision that is not there and cannot be exported.
        BuildError: an export failed.
    """
    if not wanted:
        return list(bundles)
    found = [bundle for bundle in bundles if "+".join(piece_precisions(bundle)) in wanted]
    known = {"+".join(piece_precisions(bundle)) for bundle in bundles}
    for precision in wanted:
        if precision not in known:
            found.append(_export(bundles[0], precision, origin, folder, log))
    return found


def piece_precisions(bundle: Bundle) -> list[str]:
    """Return the precisions of a bundle's pieces, each once, sorted."""
    pieces = bundle.manifest.pieces.items()
    return sorted({piece.precision for name, piece in pieces if name != WHOLE})


def _export(
    bundle: Bundle, precision: str, origin: Origin, folder: Path, log: Callable[[str], None]
) -> Bundle:
    if not origin.known:
        raise InputError(
            f"no bundle here is {precision}", "give one, or the checkpoint to export it from"
        )
    if "int8" in precision:
        raise InputError(
            f"{precision} needs images to calibrate it",
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
