"""The reference model in PyTorch, and its checkpoints."""

from uino_deploy.model.checkpoint import (
    load_checkpoint,
    load_dinov2,
    load_sam_decoder,
    save_checkpoint,
)
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.mask_decoder import MaskDecoder
from uino_deploy.model.segmenter import UinoFSS, parameter_counts

__all__ = [
    "DinoVisionTransformer",
    "MaskDecoder",
    "UinoFSS",
    "load_checkpoint",
    "load_dinov2",
    "load_sam_decoder",
    "parameter_counts",
    "save_checkpoint",
]
