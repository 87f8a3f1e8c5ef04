"""Checkpoints exported to a bundle, and the model that a bundle was exported from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from uino_deploy.bundle import MANIFEST, Bundle
from uino_deploy.config import UinoConfig, Variant
from uino_deploy.dependencies import is_importable, require
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.files import refuse_existing, sha256
from uino_deploy.workspace import work_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uino_deploy.model.assembly import Assembly

AUTO = "auto"
BUDGET = 0.99


def export_checkpoint(
    output: str | Path,
    *,
    checkpoint: Path | None = None,
    preset: str | None = None,
    encoder_checkpoint: Path | None = None,
    sam_checkpoint: Path | None = None,
    seed: int | None = None,
    variant: Variant | None = None,
    image_size: int | None = None,
    precision: Sequence[str] = (),
    min_mask_iou: float | None = None,
    calibrate: Path | None = None,
    opset: int | None = None,
    max_batch: int | None = None,
    max_shots: int | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _note: None,
) -> Bundle:
    """Export a checkpoint, or a preset filled with published weights, as `uino-deploy export` does.

    Args:
        output: the bundle's folder, `NAME.uino`.
        checkpoint: a uino-deploy checkpoint with the whole model; or give `preset`.
        preset: a key of `config.PRESETS`; weights without a checkpoint are random.
        encoder_checkpoint: DINOv2's weights, with `preset`.
        sam_checkpoint: Segment Anything's weights for the mask decoder, with `preset`.
        seed: seed of the random weights, with `preset`; 0 if None.
        variant: with `preset`; "full" if None.
        image_size: side of the square image in pixels; the model's own if None.
        precision: such as "fp16" for all pieces or "encoder=fp32" for one; "auto" alone chooses
            float16 or float32 for each node.
        min_mask_iou: with "auto", the least IoU of masks with float32's; 0.99 if None.
        calibrate: a folder of images that set the scales of int8 or fp8, or that "auto" chooses
            on; if None, photographs and demo scenes of installed packages, or scenes of a drawn
            thing.
        opset: version of ONNX's standard operators; the first from 18 on that fits if None.
        max_batch: the largest batch of queries to allow; any if None.
        max_shots: the largest number of support images to allow; any if None.
        force: replace an existing bundle.
        progress: called with a note before each step.

    Returns:
        The bundle, opened; its manifest names the parts with random weights.

    Raises:
        InputError: the sources contradict each other, or a value is not supported.
        CheckpointError: a checkpoint is unreadable or of another architecture.
        DependencyError: torch or onnx is not installed.
        OutputExists: the output exists and `force` is not given.
        BuildError: a piece could not be exported.
    """
    parts = {
        "--encoder-checkpoint": encoder_checkpoint,
        "--sam-checkpoint": sam_checkpoint,
        "--seed": seed,
        "--variant": variant,
    }
    given = [name for name, value in parts.items() if value is not None]
    if (checkpoint is None) == (preset is None):
        raise InputError("give either --checkpoint or --preset")
    if checkpoint is not None and given:
        raise InputError(f"{given[0]} needs --preset: a --checkpoint already defines it")
    require("export", "torch", "onnx", "onnxscript")
    from uino_deploy.export.exporter import export_bundle
    from uino_deploy.export.precision import EIGHT_BIT, parse_precision
    from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

    chosen = AUTO in precision
    if chosen and len(precision) > 1:
        raise InputError("--precision auto chooses for every piece", "give it alone")
    if min_mask_iou is not None and not chosen:
        raise InputError("--min-mask-iou needs --precision auto")
    precisions = parse_precision(() if chosen else precision)
    quantises = not set(EIGHT_BIT).isdisjoint(precisions.values())
    if calibrate is not None and not (quantises or chosen):
        raise InputError("--calibrate needs --precision encoder=int8, encoder=fp8 or auto")
    calibration = _calibration(calibrate) if quantises else []
    if chosen:
        refuse_existing(output, force, MANIFEST)
    if checkpoint is not None:
        made = assemble_from_checkpoint(checkpoint, image_size)
    else:
        config = UinoConfig.from_preset(preset or "", variant or "full", image_size)
        made = assemble_from_parts(config, encoder_checkpoint, sam_checkpoint, seed or 0)
    export = partial(
        export_bundle,
        made.model,
        precision=precisions,
        opset=opset,
        max_batch=max_batch,
        max_shots=max_shots,
        sources=made.sources,
        untrained=made.untrained,
        seed=made.seed,
        calibration=calibration,
        progress=progress,
    )
    if not chosen:
        return export(output, force=force)
    with work_folder(None, "uino-auto") as folder:
        exact = export(folder / "exact.uino")
        budget = BUDGET if min_mask_iou is None else min_mask_iou
        return _export_auto(exact, output, calibrate, budget, force, progress)


def _export_auto(
    exact: Bundle,
    output: str | Path,
    images: Path | None,
    budget: float,
    force: bool,
    progress: Callable[[str], None],
) -> Bundle:
    """Choose types on a float32 bundle and write it in them."""
    from uino_deploy.export.choice import choose_types
    from uino_deploy.export.exporter import export_mixed, reference_letters
    from uino_deploy.export.forecast.chain import Sample
    from uino_deploy.export.forecast.samples import COUNT, folder_samples, thing_samples

    samples = thing_samples() if images is None else folder_samples(images, [], COUNT)
    (query, _), shot = reference_letters()
    example = Sample("the stored example", query, [shot])
    halves, decision = choose_types(exact, samples, example, budget, progress)
    progress("writing the chosen types")
    return export_mixed(exact, output, halves, decision, force)


@dataclass(frozen=True)
class Origin:
    """The checkpoints that a bundle was exported from.

    Attributes:
        checkpoint: a uino-deploy checkpoint with the whole model; excludes the others.
        encoder: DINOv2's.
        sam: Segment Anything's.
        untrained: the export used no checkpoint.
    """

    checkpoint: Path | None = None
    encoder: Path | None = None
    sam: Path | None = None
    untrained: bool = False

    @property
    def known(self) -> bool:
        """Whether any source is given."""
        return bool(self.checkpoint or self.encoder or self.sam or self.untrained)

    def or_bundled(self, bundle: Bundle) -> Origin:
        """Return this, or the package's own checkpoint if no source is given and it matches."""
        if self.known or not is_importable("torch"):
            return self
        import uino_deploy.assets

        asset = Path(uino_deploy.assets.__file__ or "").parent / "tiny.safetensors"
        hashes = {source.sha256 for source in bundle.manifest.provenance.sources}
        return Origin(checkpoint=asset) if sha256(asset) in hashes else self

    def assemble(self, bundle: Bundle, image_size: int | None = None) -> Assembly:
        """Build the model that a bundle was exported from.

        Args:
            bundle: opened.
            image_size: side of the square image in pixels; the bundle's own if None.

        Raises:
            CheckpointError: a file is unreadable or of another architecture.
            CheckFailed: the model is not the bundle's.
            DependencyError: torch is not installed.
        """
        require("export", "torch")
        from uino_deploy.export.exporter import fingerprint
        from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

        size = image_size or bundle.config.image_size
        if self.checkpoint is not None:
            made = assemble_from_checkpoint(self.checkpoint, size)
        else:
            config = replace(bundle.config, image_size=size)
            seed = bundle.manifest.provenance.seed or 0
            made = assemble_from_parts(config, self.encoder, self.sam, seed)
        same_size = size == bundle.config.image_size
        if same_size and fingerprint(made.model) != bundle.manifest.fingerprint:
            raise CheckFailed(
                f"{bundle.root} was not exported from this model: their fingerprints differ",
                "give the checkpoint that was exported",
            )
        return made


def _calibration(folder: Path | None) -> list[NDArray[np.uint8]]:
    if folder is None:
        from uino_deploy.data.calibration import calibration_images

        return calibration_images()
    from uino_deploy.images import load_image
    from uino_deploy.runtime.batch import find_images

    return [load_image(path) for path in find_images([str(folder)])]
