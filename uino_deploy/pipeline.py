"""The model's pieces as data: their inputs and outputs, their order, and their connections.

    class: support_image -> encoder -> support_deep
           support_deep, mask -> support -> weight, prototypes, sparse
    query: image -> encoder -> early, query_deep
           early -> adapter -> embedding
           query_deep, support_deep, weight, prototypes -> prompt -> dense
           embedding, sparse, dense -> decoder -> logits, iou

A route runs pieces one after the other. A tensor has one name on all routes; where a piece calls it
otherwise, the route renames it: the encoder's `deep` is `support_deep` or `query_deep`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from uino_deploy.config import UinoConfig

T = TypeVar("T")


class Edges(NamedTuple):
    """The names of a piece's inputs and outputs, in their order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


PIECES = {
    "encoder": Edges(("image",), ("early", "deep")),
    "adapter": Edges(("early",), ("embedding",)),
    "support": Edges(("deep", "mask"), ("weight", "prototypes", "sparse")),
    "prompt": Edges(("query_deep", "support_deep", "weight", "prototypes"), ("dense",)),
    "decoder": Edges(("embedding", "sparse", "dense"), ("logits", "iou")),
}
# The graph that joins the pieces of a query, and its name beside theirs in a bundle.
WHOLE = "query"
# A query takes these with a leading axis for the class, of size 1; `support` gives them without.
CLASS_AXIS = frozenset({"support_deep", "weight", "sparse"})


@dataclass(frozen=True)
class Route:
    """Pieces that run one after the other; `renamed` maps a piece's tensor names to the route's."""

    pieces: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def name(self, edge: str) -> str:
        """Return the route's name of a piece's input or output."""
        return self.renamed.get(edge, edge)

    def named(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Return a piece's tensors under the route's names."""
        return {self.name(edge): tensor for edge, tensor in tensors.items()}

    def edges(self, piece: str) -> Edges:
        """Return the route's names of a piece's inputs and outputs."""
        inputs, outputs = PIECES[piece]
        return Edges(tuple(map(self.name, inputs)), tuple(map(self.name, outputs)))

    @property
    def ends(self) -> Edges:
        """The tensors that no piece of the route produces, and those that no piece of it takes."""
        steps = [self.edges(piece) for piece in self.pieces]
        taken = {name: None for step in steps for name in step.inputs}
        given = {name: None for step in steps for name in step.outputs}
        return Edges(
            tuple(name for name in taken if name not in given),
            tuple(name for name in given if name not in taken),
        )

    def split(self, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the pieces that need only the known tensors, and the other pieces."""
        have, first = set(known), []
        for piece in self.pieces:
            if have.issuperset(self.edges(piece).inputs):
                first.append(piece)
                have.update(self.edges(piece).outputs)
        return tuple(first), tuple(piece for piece in self.pieces if piece not in first)

    def after(self, piece: str) -> tuple[str, ...]:
        """Return the pieces of this route whose inputs depend on a piece's outputs."""
        changed, pieces = set(route_of(piece).edges(piece).outputs), []
        for other in self.pieces:
            if other != piece and not changed.isdisjoint(self.edges(other).inputs):
                changed.update(self.edges(other).outputs)
                pieces.append(other)
        return tuple(pieces)


CLASS = Route(("encoder", "support"), {"image": "support_image", "deep": "support_deep"})
QUERY = Route(("encoder", "adapter", "prompt", "decoder"), {"deep": "query_deep"})


def route_of(piece: str) -> Route:
    """Return a class's route for the pieces that run only there; a query's for all others."""
    return CLASS if piece in CLASS.pieces and piece not in QUERY.pieces else QUERY


def producer(name: str) -> str | None:
    """Return the piece that produces a tensor; None for images and masks, which are given."""
    for route in (CLASS, QUERY):
        for piece in route.pieces:
            if name in route.edges(piece).outputs:
                return piece
    return None


def variant_edges(config: UinoConfig) -> dict[str, Edges]:
    """Return every piece's edges in one model: a variant leaves out the tensors it does not use."""
    absent: set[str] = set()
    if config.prompt.hypercorrelation == "none":
        absent |= {"support_deep", "weight"}
    if not config.prompt.semantic:
        absent.add("sparse")
    return {
        piece: Edges(*(tuple(name for name in names if name not in absent) for names in edges))
        for piece, edges in PIECES.items()
    }


def with_class_axis(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a class's arrays or tensors, named as on the routes, in the shapes a query takes."""
    return {
        name: tensor[None] if name in CLASS_AXIS else tensor for name, tensor in tensors.items()
    }
