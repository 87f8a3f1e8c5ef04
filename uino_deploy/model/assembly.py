"""A model assembled from the given checkpoints, with a record of the untrained parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from uino_deploy.bundle import Source
from uino_deploy.config import UinoConfig
from uino_deploy.files import sha256
from uino_deploy.model.checkpoint import (
    load_checkpoint,
    load_dinov2,
    load_sam_decoder,
    read_checkpoint_metadata,
)
from uino_deploy.model.segmenter import UinoFSS


@dataclass(frozen=True)
class Assembly:
    """A model and the origin of its weights.

    Attributes:
        model: the model, in evaluation mode.
        sources: the checkpoints it was built from.
        untrained: the parts that hold random weights.
        seed: the seed of the random weights; None if nothing is random.
    """

    model: UinoFSS
    sources: tuple[Source, ...]
    untrained: tuple[str, ...]
    seed: int | None


def assemble_from_checkpoint(path: Path, image_size: int | None = None) -> Assembly:
    """Load one of our own checkpoints.

    Args:
        path: the file.
        image_size: side of the image in pixels; the checkpoint's own if None. The position
            embedding is interpolated for another size.

    Raises:
        CheckpointError: the file is unreadable, damaged, or not ours.
        InputError: an image size off the patch grid.
    """
    model = load_checkpoint(path)
    if image_size is not None:
        model.config = replace(model.config, image_size=image_size)
    provenance = read_checkpoint_metadata(path).provenance
    untrained = tuple(map(str, provenance.get("untrained", ())))
    source = Source(role="model", name=path.name, sha256=sha256(path), trained=not untrained)
    return Assembly(model, (source,), untrained, None)


def assemble_from_parts(
    config: UinoConfig,
    encoder_checkpoint: Path | None = None,
    sam_checkpoint: Path | None = None,
    seed: int = 0,
) -> Assembly:
    """Build a model from published weights where given, and from seeded random ones elsewhere.

    Args:
        config: the model.
        encoder_checkpoint: DINOv2's weights; random if None.
        sam_checkpoint: Segment Anything's weights, for the mask decoder; random if None.
        seed: the seed of the random weights. The global random state does not change.

    Raises:
        CheckpointError: a file is unreadable or has another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UinoFSS(config)
    untrained = ["encoder", "adapter", "prompt_generator", "decoder"]
    sources = []
    if encoder_checkpoint is not None:
        model.encoder = load_dinov2(encoder_checkpoint, config.encoder)
        sources.append(_source("encoder", encoder_checkpoint))
        untrained.remove("encoder")
    if sam_checkpoint is not None:
        model.decoder = load_sam_decoder(sam_checkpoint, config.decoder)
        sources.append(_source("decoder", sam_checkpoint))
        untrained.remove("decoder")
    return Assembly(model.eval(), tuple(sources), tuple(untrained), seed)


def _source(role: str, path: Path) -> Source:
    return Source(role=role, name=path.name, sha256=sha256(path), trained=True)
