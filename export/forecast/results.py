"""The forecast as data: effects of types on logits and masks, by node, by block and whole."""

from __future__ import annotations

import msgspec

from uino_deploy.export.forecast.ranges import Range
from uino_deploy.export.forecast.rounding import Kind

WHOLE = ": the whole"  # how what is skipped ends if it is all nodes in a type


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """The change of the result when something computes in a type.

    Attributes:
        logits: relative L2 error of the worst sample's logits; None if one is not finite.
        mask_iou: of all samples' masks together with float32's; 0 if a logit is not finite.
        samples: how many were run.
    """

    logits: float | None
    mask_iou: float
    samples: int

    def keeps(self, budget: float) -> bool:
        """Return whether the mask stays within a budget of IoU."""
        return self.logits is not None and self.mask_iou >= budget


class BlockForecast(msgspec.Struct, frozen=True, kw_only=True):
    """A block: its place, its work, its range and the effect of each type on it alone.

    Attributes:
        name: such as "encoder.blocks.0".
        nodes: how many of its nodes compute.
        flops: operations for one image.
        largest: largest magnitude of what its nodes give; None if not finite.
        high: largest 99.99th percentile of a node's output.
        effects: by type.
    """

    name: str
    nodes: int
    flops: int
    largest: float | None
    high: float
    effects: dict[Kind, Effect]


class NodeForecast(msgspec.Struct, frozen=True, kw_only=True):
    """A node: its place, its range, and the effect of each type that was tried on it alone.

    Attributes:
        name: in the joined query, such as "encoder/node_MatMul_50".
        operator: its ONNX operator.
        layer: the module that it computes for.
        block: the block that it is in.
        flops: operations for one image.
        takes: the range of its activations; None if it takes none.
        weights: the range of its constants; None if it has none.
        gives: the range of its outputs.
        overflows: the types that cannot hold something of it, and where: "gives", "weights",
            or "takes" if an earlier node made what is too large.
        effects: by type; only nodes of guilty blocks are tried.
    """

    name: str
    operator: str
    layer: str
    block: str
    flops: int
    takes: Range | None
    weights: Range | None
    gives: Range
    overflows: dict[Kind, str]
    effects: dict[Kind, Effect]


class Guilt(msgspec.Struct, frozen=True, kw_only=True):
    """A node that breaks the budget by itself in a type, and why."""

    node: str
    layer: str
    kind: Kind
    reason: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What each type would do to a bundle.

    Attributes:
        bundle: its folder's or its checkpoint's name.
        preset: the model's.
        samples: names of the images.
        foreground: share of each float32 mask that is foreground.
        budget: the least IoU of a mask with float32's.
        whole: the effect of each type on all nodes that have it, together.
        blocks: in the order in which they run.
        nodes: likewise.
        guilty: nodes that break the budget alone, the first overflow first.
        skipped: what the time did not suffice for.
        seconds: taken.
    """

    bundle: str
    preset: str
    samples: list[str]
    foreground: list[float]
    budget: float
    whole: dict[Kind, Effect]
    blocks: list[BlockForecast]
    nodes: list[NodeForecast]
    guilty: list[Guilt]
    skipped: list[str]
    seconds: float

    def share(self, node: NodeForecast, kind: Kind) -> float | None:
        """Return a node's share of a type's squared error; None if either is not finite."""
        alone, whole = node.effects.get(kind), self.whole.get(kind)
        if alone is None or whole is None or alone.logits is None or not whole.logits:
            return None
        return (alone.logits / whole.logits) ** 2
