"""Model configurations: sizes, variants and presets, as frozen values that a manifest can hold.

The module needs no torch, so the runtime can import it. Sources: UINO-FSS (arXiv 2504.15669),
DINOv2's and Segment Anything's published model definitions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args

import msgspec

from uino_deploy.errors import InputError

Variant = Literal["comp-star", "comp", "full", "cp4d"]
Hypercorrelation = Literal["none", "mhcm", "cp4d"]

# Far beyond every published model, and small enough to be multiplied.
LARGEST_SIZE = 1 << 16
MOST_LAYERS = 256
_MAY_BE_LESS = {"registers", "image_size"}

VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True)
class EncoderConfig:
    """A DINOv2 vision transformer and the blocks whose tokens the segmenter reads.

    Block numbers count from 1: `early_layer=3` is the output of the third block.
    """

    width: int
    depth: int
    heads: int
    early_layer: int
    correlation_layers: tuple[int, ...]
    registers: int = 0
    patch: int = 14
    mlp_ratio: int = 4
    pretrained_grid: int = 37


@dataclass(frozen=True)
class AdapterConfig:
    """The bottleneck adapter: convolutions `hidden` wide, self-attention `bottleneck` wide."""

    hidden: int = 256
    bottleneck: int = 128
    heads: int = 8
    feedforward: int = 512
    depth: int = 2


@dataclass(frozen=True)
class PromptConfig:
    """The meta-visual prompt generator; `channels` are the correlation's widths, stage by stage."""

    semantic: bool = True
    hypercorrelation: Hypercorrelation = "mhcm"
    contrastive: bool = True
    semantic_hidden: int = 64
    similarity_channels: int = 16
    pool: int = 3
    channels: tuple[int, ...] = (16, 32, 64)
    head_channels: int = 128
    state: int = 4


@dataclass(frozen=True)
class DecoderConfig:
    """SAM's mask decoder; `width` is the embedding dimension E of every prompt."""

    width: int = 256
    depth: int = 2
    heads: int = 8
    feedforward: int = 2048
    mask_tokens: int = 4
    iou_hidden: int = 256


@dataclass(frozen=True)
class UinoConfig:
    """A whole UINO-FSS model at one image size."""

    preset: str
    variant: Variant
    image_size: int
    encoder: EncoderConfig
    adapter: AdapterConfig
    prompt: PromptConfig
    decoder: DecoderConfig

    def __post_init__(self) -> None:
        """Refuse numbers that no model can have.

        Raises:
            InputError: a size below 1 or beyond any model, a width that its heads cannot share, an
                image size that is not a positive multiple of the patch, or a layer that the
                encoder does not have.
        """
        _check_sizes(self)
        patch = self.encoder.patch
        if self.image_size < patch or self.image_size % patch:
            down = max(patch, self.image_size // patch * patch)
            raise InputError(
                f"image size {self.image_size} is not a positive multiple of the patch {patch}",
                f"use {down} or {down + patch}",
            )
        for what, width, heads in (
            ("encoder", self.encoder.width, self.encoder.heads),
            ("adapter", self.adapter.bottleneck, self.adapter.heads),
            ("decoder", self.decoder.width, self.decoder.heads),
        ):
            if width % heads:
                raise InputError(f"the {what}'s {heads} heads cannot share a width of {width}")
        for layer in (self.encoder.early_layer, *self.encoder.correlation_layers):
            if not 1 <= layer <= self.encoder.depth:
                raise InputError(
                    f"layer {layer} is outside the encoder's {self.encoder.depth} blocks"
                )

    @property
    def grid(self) -> int:
        """Tokens along one side of the image (h = w)."""
        return self.image_size // self.encoder.patch

    @property
    def tokens(self) -> int:
        """Patch tokens of one image, N = h * w."""
        return self.grid**2

    @property
    def pooled_grid(self) -> int:
        """Side of the pooled support plane in the correlation volume."""
        return math.ceil(self.grid / self.prompt.pool)

    @property
    def mask_size(self) -> int:
        """Side of the mask logits, 4h."""
        return 4 * self.grid

    @classmethod
    def from_preset(
        cls, preset: str = "vitb14", variant: Variant = "full", image_size: int | None = None
    ) -> UinoConfig:
        """Return a preset's model.

        Args:
            preset: one of `PRESETS`.
            variant: a row of the paper's tables: comp-star, comp, full or cp4d.
            image_size: side of the square image in pixels; the preset's own if None.

        Raises:
            InputError: an unknown preset or variant, or an image size off the patch grid.
        """
        if preset not in PRESETS:
            raise InputError(f"unknown preset {preset!r}", f"choose from {', '.join(PRESETS)}")
        if variant not in VARIANTS:
            raise InputError(f"unknown variant {variant!r}", f"choose from {', '.join(VARIANTS)}")
        config = PRESETS[preset]
        return replace(
            config,
            variant=variant,
            image_size=config.image_size if image_size is None else image_size,
            prompt=replace(config.prompt, **_VARIANT_PROMPTS[variant]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UinoConfig:
        """Read what `to_dict` wrote.

        Raises:
            InputError: a key is missing, unknown or of the wrong type.
        """
        try:
            config = msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"not a model configuration: {error}") from error
        unknown = _unknown_keys(values, config.to_dict())
        if unknown:
            raise InputError(f"not a model configuration: unknown {', '.join(unknown)}")
        return config


def _check_sizes(config: Any, prefix: str = "") -> None:
    """Refuse sizes beyond any model before something is built from them."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            _check_sizes(value, f"{field.name}.")
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > MOST_LAYERS:
            raise InputError(f"{prefix}{field.name} has {len(numbers)} numbers, over {MOST_LAYERS}")
        most = MOST_LAYERS if field.name == "depth" else LARGEST_SIZE
        for number in numbers:
            if type(number) is int and number > most:
                raise InputError(f"{prefix}{field.name} is {number:,}, over {most:,}")
            # An image's size is compared with the patch, which tells what to use.
            if type(number) is int and number < 1 and field.name not in _MAY_BE_LESS:
                raise InputError(f"{prefix}{field.name} is {number:,}, below 1")


def _unknown_keys(values: dict[str, Any], known: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the keys that a configuration does not have: they would describe another model."""
    unknown = []
    for key, value in values.items():
        if key not in known:
            unknown.append(prefix + key)
        elif isinstance(value, dict):
            unknown += _unknown_keys(value, known[key], f"{prefix}{key}.")
    return unknown


_COMPACT: dict[str, Any] = {"hypercorrelation": "none", "contrastive": False}
_VARIANT_PROMPTS: dict[Variant, dict[str, Any]] = {
    "comp-star": _COMPACT,
    "comp": _COMPACT,
    "full": {"hypercorrelation": "mhcm", "contrastive": True},
    "cp4d": {"hypercorrelation": "cp4d", "contrastive": True},
}


def _vit(preset: str, width: int, depth: int, heads: int, registers: int) -> UinoConfig:
    layers = (13, 15, 17, 19, 21, 24) if depth == 24 else (7, 8, 9, 10, 11, 12)
    encoder = EncoderConfig(width, depth, heads, depth // 4, layers, registers)
    return UinoConfig(
        preset, "full", 518, encoder, AdapterConfig(), PromptConfig(), DecoderConfig()
    )


_SIZES = {"vits14": (384, 12, 6), "vitb14": (768, 12, 12), "vitl14": (1024, 24, 16)}

PRESETS: dict[str, UinoConfig] = {
    name + suffix: _vit(name + suffix, *size, registers)
    for name, size in _SIZES.items()
    for suffix, registers in (("", 0), ("-reg", 4))
}
PRESETS["tiny"] = UinoConfig(
    preset="tiny",
    variant="full",
    image_size=112,
    encoder=EncoderConfig(128, 6, 4, 2, (3, 4, 5, 6), pretrained_grid=8),
    adapter=AdapterConfig(hidden=64, bottleneck=32, heads=4, feedforward=64),
    prompt=PromptConfig(pool=2, channels=(8, 16, 16), head_channels=64),
    decoder=DecoderConfig(width=64, heads=4, feedforward=256, iou_hidden=64),
)
