"""Checkpoint layouts: how each kind of file names the tensors of the reference model.

Sources: the published files of facebookresearch/dinov2 and facebookresearch/segment-anything, and
of facebook/dinov2-* on the Hugging Face hub. No torch is needed: names and shapes identify a
layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from uino_deploy.config import PRESETS, EncoderConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """One naming scheme for tensors.

    Attributes:
        title: its name for people.
        holds: the part of the model that it fills.
        sources: maps the reference model's name of a tensor to the file's: one name, or several
            whose tensors are joined along the first dimension.
        unused: prefixes of tensors that such files contain and the model, by design, lacks.
    """

    title: str
    holds: Literal["dinov2", "sam", "uino"]
    sources: Callable[[str], tuple[str, ...]]
    unused: tuple[str, ...] = ()

    def asked(self, model: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the tensors that fill a model's, by the file's names."""
        wanted = {}
        for name, shape in model.items():
            sources = self.sources(name)
            part = shape if len(sources) == 1 else (shape[0] // len(sources), *shape[1:])
            wanted.update(dict.fromkeys(sources, part))
        return wanted

    def held(self, file: Shapes) -> dict[str, tuple[int, ...]]:
        """Return a file's tensors without those that are unused by design."""
        return {n: shape for n, shape in file.items() if not n.startswith(self.unused)}


def _same(name: str) -> tuple[str, ...]:
    return (name,)


def _sam(name: str) -> tuple[str, ...]:
    return (f"{'prompt_encoder' if name.startswith('pe_layer.') else 'mask_decoder'}.{name}",)


_TRANSFORMERS_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "blocks.": "encoder.layer.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "norm.": "layernorm.",  # the last one; the blocks' are norm1 and norm2
}
_HUB_ATTENTION = {
    "attn.proj.": ("attention.output.dense.",),
    "attn.qkv.": tuple(f"attention.attention.{part}." for part in ("query", "key", "value")),
}
_MODULE_ATTENTION = {
    "attn.proj.": ("attention.o_proj.",),
    "attn.qkv.": tuple(f"attention.{part}_proj." for part in "qkv"),
}
_PREFIXES = ("dinov2.", "dinov2_with_registers.", "")


def _transformers(names: Shapes) -> Layout:
    """Return the layout of a transformers model, with attention named as in files or modules."""
    prefix = next(p for p in _PREFIXES if any(name.startswith(p) for name in names))
    hub = any(".attention.attention." in name for name in names)
    attention = _HUB_ATTENTION if hub else _MODULE_ATTENTION

    def sources(name: str) -> tuple[str, ...]:
        for official, theirs in _TRANSFORMERS_NAMES.items():
            name = name.replace(official, theirs)
        for official, parts in attention.items():
            if official in name:
                return tuple(prefix + name.replace(official, part) for part in parts)
        return (prefix + name,)

    return Layout("DINOv2 (Hugging Face)", "dinov2", sources, (f"{prefix}embeddings.mask_token",))


UINO = Layout("uino-deploy", "uino", _same)
DINOV2 = Layout("DINOv2 (official)", "dinov2", _same, ("mask_token",))
SAM = Layout(
    "Segment Anything (official)",
    "sam",
    _sam,
    (
        "image_encoder.",
        "prompt_encoder.point_embeddings.",
        "prompt_encoder.not_a_point_embed.",
        "prompt_encoder.mask_downscaling.",
        "prompt_encoder.no_mask_embed.",
    ),
)


SAM_ENCODER = Layout(
    "Segment Anything (official)",
    "sam",
    lambda name: (f"image_encoder.{name}",),
    ("mask_decoder.", "prompt_encoder."),
)


def recognise(shapes: Shapes) -> Layout | None:
    """Return the layout of a file's tensors; None if it is unknown."""
    if any(name.startswith("prompt_generator.") for name in shapes):
        return UINO
    if any(name.startswith("mask_decoder.") for name in shapes):
        return SAM
    if any(name.startswith("blocks.") for name in shapes):
        return DINOV2
    if any(re.match(r"(dinov2\w*\.)?encoder\.layer\.", name) for name in shapes):
        return _transformers(shapes)
    return None


def fitting_presets(layout: Layout, shapes: Shapes) -> dict[str, EncoderConfig]:
    """Return the presets whose encoder has the width, depth and registers of a DINOv2 file."""
    width = _shape(layout, "cls_token", shapes)[-1]
    numbers = re.findall(r"(?:blocks|encoder\.layer)\.(\d+)\.", " ".join(shapes))
    depth = 1 + max(map(int, numbers), default=-1)
    registers = math.prod(_shape(layout, "register_tokens", shapes)) // max(width, 1)
    return {
        name: preset.encoder
        for name, preset in PRESETS.items()
        if (preset.encoder.width, preset.encoder.depth) == (width, depth)
        and preset.encoder.registers == registers
    }


def _shape(layout: Layout, name: str, shapes: Shapes) -> tuple[int, ...]:
    return shapes.get(layout.sources(name)[0]) or (0,)
