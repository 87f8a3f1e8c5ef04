"""A model's pieces as modules with typed edges, ready to export; `pipeline` connects them.

An edge has the type of the piece that produces it, float32 or float16. Images, masks, logits and
predicted IoUs are always float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from uino_deploy.bundle import Edge, Piece, Precision
from uino_deploy.config import UinoConfig
from uino_deploy.export.precision import (
    EIGHT_BIT,
    PRECISIONS,
    edge_type,
    in_precision,
    rest_of,
)
from uino_deploy.kernels.dispatch import specified
from uino_deploy.model.adapter import BottleneckAdapter
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.mask_decoder import MaskDecoder
from uino_deploy.model.prompt_generator import PromptGenerator
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.pipeline import (
    CLASS,
    CLASS_AXIS,
    PIECES,
    QUERY,
    Route,
    producer,
    route_of,
    variant_edges,
)

BATCH = "batch"
SHOTS = "shots"


class PieceModule(NamedTuple):
    """A piece as the manifest describes it, and the module that computes it."""

    piece: Piece
    module: nn.Module


def reference_pieces(model: UinoFSS) -> dict[str, PieceModule]:
    """Return a model's own modules as its pieces, in float32: the reference for exports."""
    pieces = describe_pieces(model.config, dict.fromkeys(PIECES, "fp32"))
    return {name: PieceModule(pieces[name], part) for name, part in _modules(model).items()}


def exportable_pieces(
    model: UinoFSS, precision: Mapping[str, Precision], opset: int
) -> dict[str, PieceModule]:
    """Return copies of a model's modules as its pieces, ready to export.

    Args:
        model: in evaluation mode, float32.
        precision: for each piece; see `precision.parse_precision`.
        opset: the ONNX opset that the pieces will be written in.
    """
    parts = {**_modules(model), "adapter": _without_batch_norm(model.adapter)}
    pieces = {}
    for name, piece in describe_pieces(model.config, precision).items():
        # A quantised piece is written in the precision of its rest first.
        kind = rest_of(precision) if piece.precision in EIGHT_BIT else piece.precision
        cast = in_precision(parts[name], kind, opset)
        module = TypedEdges(cast, PRECISIONS[kind], piece.inputs, piece.outputs)
        pieces[name] = PieceModule(piece, module.eval())
    return pieces


def run_modules(
    route: Route, pieces: Iterable[PieceModule], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run some pieces of a route in order, each on the tensors known so far.

    On a CPU our operators are computed by their specification: the results are what exported
    pieces, which run the native operators, are compared with.

    Returns:
        The known tensors and all outputs, under the route's names.
    """
    tensors = dict(known)
    for piece, module in pieces:
        with specified():
            outputs = module(*(tensors[route.name(edge.name)] for edge in piece.inputs))
        listed = (outputs,) if isinstance(outputs, Tensor) else outputs
        names = (route.name(edge.name) for edge in piece.outputs)
        tensors |= dict(zip(names, listed, strict=True))
    return tensors


def describe_pieces(config: UinoConfig, precision: Mapping[str, Precision]) -> dict[str, Piece]:
    """Describe a model's pieces for the manifest: files, precisions, names, shapes and types."""
    return {
        name: Piece(
            name=name,
            model=f"{name}.onnx",
            precision=precision[name],
            inputs=[_edge(name, edge, config, precision) for edge in edges.inputs],
            outputs=[_edge(name, edge, config, precision) for edge in edges.outputs],
        )
        for name, edges in variant_edges(config).items()
    }


def _modules(model: UinoFSS) -> dict[str, nn.Module]:
    """Return the module of each piece, with inputs and outputs ordered as in `pipeline.PIECES`."""
    return {
        "encoder": EncoderPiece(model.encoder, model.config.grid),
        "adapter": model.adapter,
        "support": SupportPiece(model.prompt_generator),
        "prompt": PromptPiece(model.prompt_generator),
        "decoder": DecoderPiece(model.decoder),
    }


def _edge(piece: str, name: str, config: UinoConfig, precision: Mapping[str, Precision]) -> Edge:
    route = route_of(piece)
    tensor = route.name(name)
    source = None if tensor in QUERY.ends.outputs else producer(tensor)
    half = source is not None and edge_type(precision[source]) == torch.float16
    shape = _shapes(config)[tensor]
    if route is CLASS and tensor in CLASS_AXIS:
        shape = shape[1:]
    return Edge(name=name, shape=shape, dtype="float16" if half else "float32")


def _shapes(config: UinoConfig) -> dict[str, list[int | str]]:
    """Return the shape of every tensor in a query."""
    size, tokens, grid, mask = config.image_size, config.tokens, config.grid, config.mask_size
    width, layers = config.encoder.width, len(config.encoder.correlation_layers)
    embedding = config.decoder.width
    return {
        "image": [BATCH, 3, size, size],
        "early": [BATCH, tokens, width],
        "query_deep": [BATCH, layers, tokens, width],
        "support_deep": [1, SHOTS, layers, tokens, width],
        "mask": [SHOTS, tokens],
        "weight": [1, SHOTS, tokens],
        "prototypes": [2, width],
        "sparse": [1, 2, embedding],
        "embedding": [BATCH, embedding, grid, grid],
        "dense": [BATCH, embedding, grid, grid],
        "logits": [BATCH, 1, mask, mask],
        "iou": [BATCH, 1],
    }


class TypedEdges(nn.Module):
    """Casts a part's inputs to its precision, and its outputs to the types of their edges.

    A support mask stays float32: its fractions of foreground are summed.
    """

    def __init__(
        self,
        part: nn.Module,
        compute: torch.dtype,
        inputs: Sequence[Edge],
        outputs: Sequence[Edge],
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
        """Return weight [K, N], prototypes [2, D] and sparse [2, E], those that the variant has."""
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
    """The mask decoder, without its sparse prompt if the variant has none."""

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
