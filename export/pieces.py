"""The five pieces of a model, each a module with named, typed edges (the table in the README).

Piece edges are float32 or float16: an edge has the type of the piece that produces it, and images,
masks, logits and IoU estimates are always float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from uino_deploy.bundle import Precision
from uino_deploy.bundle import Tensor as Edge
from uino_deploy.config import UinoConfig
from uino_deploy.export.precision import PRECISIONS, edge_type, in_precision
from uino_deploy.model.adapter import BottleneckAdapter
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.mask_decoder import MaskDecoder
from uino_deploy.model.prompt_generator import PromptGenerator
from uino_deploy.model.segmenter import UinoFSS

BATCH = "batch"
SHOTS = "shots"

# What each piece produces, so that an edge's type can be told from its name.
_PRODUCER = {
    "early": "encoder",
    "deep": "encoder",
    "query_deep": "encoder",
    "support_deep": "encoder",
    "weight": "support",
    "prototypes": "support",
    "sparse": "support",
    "embedding": "adapter",
    "dense": "prompt",
}


@dataclass(frozen=True)
class Piece:
    """A module to export and the names, shapes and types of its edges."""

    name: str
    precision: Precision
    module: nn.Module
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]


def pieces_of(model: UinoFSS, precision: Mapping[str, Precision], opset: int) -> tuple[Piece, ...]:
    """Split a model into its pieces, ready to export.

    Args:
        model: in evaluation mode, float32.
        precision: for each piece; see `precision.parse_precision`.
        opset: the ONNX opset that the pieces will be written in.
    """
    config = model.config
    parts: dict[str, nn.Module] = {
        "encoder": EncoderPiece(model.encoder, config.grid),
        "adapter": _without_batch_norm(model.adapter),
        "support": SupportPiece(model.prompt_generator),
        "prompt": PromptPiece(model.prompt_generator),
        "decoder": DecoderPiece(model.decoder),
    }
    edges = edges_of(config, precision)
    pieces = []
    for name, part in parts.items():
        inputs, outputs = edges[name]
        cast = in_precision(part, precision[name], opset)
        module = TypedEdges(cast, PRECISIONS[precision[name]], inputs, outputs)
        pieces.append(Piece(name, precision[name], module.eval(), inputs, outputs))
    return tuple(pieces)


def edge_names(config: UinoConfig) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of every piece's inputs and outputs; a variant leaves out what it lacks."""
    correlates = config.prompt.hypercorrelation != "none"
    weight = ("weight",) if correlates else ()
    tokens = ("support_deep", "weight") if correlates else ()
    sparse = ("sparse",) if config.prompt.semantic else ()
    return {
        "encoder": (("image",), ("early", "deep")),
        "adapter": (("early",), ("embedding",)),
        "support": (("deep", "mask"), (*weight, "prototypes", *sparse)),
        "prompt": (("query_deep", *tokens, "prototypes"), ("dense",)),
        "decoder": (("embedding", *sparse, "dense"), ("logits", "iou")),
    }


def edges_of(
    config: UinoConfig, precision: Mapping[str, Precision]
) -> dict[str, tuple[tuple[Edge, ...], tuple[Edge, ...]]]:
    """Return every piece's inputs and outputs: names, shapes and types."""
    edges = {}
    for piece, (inputs, outputs) in edge_names(config).items():
        edges[piece] = (
            tuple(_edge(piece, name, config, precision) for name in inputs),
            tuple(_edge(piece, name, config, precision) for name in outputs),
        )
    return edges


def _edge(piece: str, name: str, config: UinoConfig, precision: Mapping[str, Precision]) -> Edge:
    half = name in _PRODUCER and edge_type(precision[_PRODUCER[name]]) == torch.float16
    shape = _shape(piece, name, config)
    return Edge(name=name, shape=shape, dtype="float16" if half else "float32")


def _shape(piece: str, name: str, config: UinoConfig) -> list[int | str]:
    size, tokens, grid, mask = config.image_size, config.tokens, config.grid, config.mask_size
    width, layers = config.encoder.width, len(config.encoder.correlation_layers)
    embedding = config.decoder.width
    enrolling = piece == "support"
    shapes: dict[str, list[int | str]] = {
        "image": [BATCH, 3, size, size],
        "early": [BATCH, tokens, width],
        "deep": [SHOTS if enrolling else BATCH, layers, tokens, width],
        "query_deep": [BATCH, layers, tokens, width],
        "support_deep": [1, SHOTS, layers, tokens, width],
        "mask": [SHOTS, tokens],
        "weight": [SHOTS, tokens] if enrolling else [1, SHOTS, tokens],
        "prototypes": [2, width],
        "sparse": [2, embedding] if enrolling else [1, 2, embedding],
        "embedding": [BATCH, embedding, grid, grid],
        "dense": [BATCH, embedding, grid, grid],
        "logits": [BATCH, 1, mask, mask],
        "iou": [BATCH, 1],
    }
    return shapes[name]


class TypedEdges(nn.Module):
    """Casts a part's inputs to its precision, and its outputs to the types of their edges.

    A support mask stays float32: its shares of foreground are summed.
    """

    def __init__(
        self,
        part: nn.Module,
        compute: torch.dtype,
        inputs: tuple[Edge, ...],
        outputs: tuple[Edge, ...],
    ) -> None:
        super().__init__()
        self.part = part
        self.input_types = [torch.float32 if e.name == "mask" else compute for e in inputs]
        self.output_types = [getattr(torch, edge.dtype) for edge in outputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the part on its inputs, in the order of its edges."""
        cast = (x.to(t) for x, t in zip(inputs, self.input_types, strict=True))
        outputs = self.part(*cast)
        listed = (outputs,) if isinstance(outputs, Tensor) else outputs
        return tuple(y.to(t) for y, t in zip(listed, self.output_types, strict=True))


class EncoderPiece(nn.Module):
    """The encoder at one image size, its position embedding a constant."""

    offsets: Tensor

    def __init__(self, encoder: DinoVisionTransformer, grid: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("offsets", encoder.token_offsets(grid).detach())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, H] -> early [B, N, D], deep [B, L, N, D]."""
        return self.encoder.transform(self.encoder.patch_embed(image), self.offsets)


class SupportPiece(nn.Module):
    """Enrolls one class: deep [K, L, N, D], mask [K, N] -> weight, prototypes, sparse."""

    def __init__(self, generator: PromptGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, deep: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return what the variant has of weight [K, N], prototypes [2, D] and sparse [2, E]."""
        features = self.generator.support_features(deep[None], mask[None])
        outputs = [features.prototypes[0]]
        if self.generator.hypercorrelation is not None:
            outputs.insert(0, features.weight[0])
        if features.sparse is not None:
            outputs.append(features.sparse[0])
        return tuple(outputs)


class PromptPiece(nn.Module):
    """The dense prompt of queries for one class."""

    def __init__(self, generator: PromptGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, query_deep: Tensor, *support: Tensor) -> Tensor:
        """Take support_deep [1, K, L, N, D], weight [1, K, N] (if any) and prototypes [2, D]."""
        *tokens, prototypes = support
        support_deep, weight = tokens or (None, None)
        return self.generator(query_deep, support_deep, weight, prototypes[None])


class DecoderPiece(nn.Module):
    """The mask decoder, its sparse prompt left out where the variant has none."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embedding: Tensor, *prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Take sparse [1, 2, E] (if any) and dense [B, E, h, w]."""
        *sparse, dense = prompts
        return self.decoder(embedding, sparse[0] if sparse else None, dense)


def _without_batch_norm(adapter: BottleneckAdapter) -> nn.Module:
    """Fold each BatchNorm into the convolution before it."""
    folded = copy.deepcopy(adapter).eval()
    for name in ("reduce", "mix", "squeeze"):
        convolution, norm = getattr(folded, name), getattr(folded, f"{name}_norm")
        setattr(folded, name, fusion.fuse_conv_bn_eval(convolution, norm))
        setattr(folded, f"{name}_norm", nn.Identity())
    return folded
