"""`forecast_precision`: blocks first, then the nodes of guilty blocks, while time lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx

from uino_deploy.bundle import Bundle
from uino_deploy.export.forecast.blocks import Block, Node
from uino_deploy.export.forecast.chain import Chain, Sample
from uino_deploy.export.forecast.ranges import NodeRange, measure_ranges
from uino_deploy.export.forecast.results import (
    WHOLE,
    BlockForecast,
    Effect,
    Forecast,
    Guilt,
    NodeForecast,
)
from uino_deploy.export.forecast.rounding import HALVES, KINDS, LARGEST, Kind, applies, rounded
from uino_deploy.tolerances import relative_l2

# Where no block breaks the budget, the nodes of these many with the largest errors are tried.
_CURIOUS = 2
# Below so many operations for an image, nodes are tried on all samples, as blocks are.
_SMALL = 5e9
_NAMES = {"fp16": "float16", "bf16": "bfloat16"}


def forecast_precision(
    bundle: Bundle,
    samples: Sequence[Sample],
    *,
    budget: float = 0.99,
    minutes: float = 30.0,
    kinds: Sequence[Kind] = KINDS,
    name: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _note: None,
) -> Forecast:
    """Forecast what each type does to a float32 bundle: to the whole, its blocks and its nodes.

    Args:
        bundle: float32.
        samples: images with their shots.
        budget: the least IoU of a mask with float32's.
        minutes: when they are over, what is left is skipped and listed.
        kinds: the types, the most important first.
        name: of what is forecast; the bundle's folder if None.
        threads: of ONNX Runtime; one for each core if None.
        progress: called with a note before each step.

    Raises:
        InputError: the bundle is not float32.
    """
    clock = _Clock(minutes)
    progress("running float32")
    chain = Chain(bundle, samples, threads)
    progress("measuring ranges")
    trials = Trials(chain, measure_ranges(chain))
    whole = {}
    for kind in kinds:
        if clock.allows(f"{kind}{WHOLE}"):
            progress(f"{kind}{WHOLE}")
            whole[kind] = clock.timed(partial(trials.everything, kind))
    blocks: dict[str, dict[Kind, Effect]] = {block.name: {} for block in chain.blocks}
    for kind in kinds:
        for number, block in enumerate(chain.blocks):
            if trials.named(block, kind) and clock.allows(f"{kind}: {block.name}"):
                progress(f"{kind}: {block.name}")
                effect = clock.timed(partial(trials.block, number, kind))
                blocks[block.name][kind] = effect
    nodes: dict[str, dict[Kind, Effect]] = {}
    for number, node, kind in _suspects(trials, blocks, kinds, budget):
        if clock.allows(f"{kind}: nodes of {node.block}"):
            progress(f"{kind}: {node.name}")
            effect = clock.timed(partial(trials.node, number, node, kind))
            nodes.setdefault(node.name, {})[kind] = effect
    found = trials.forecasts(nodes)
    return Forecast(
        bundle=name or bundle.root.name,
        preset=bundle.config.preset,
        samples=[sample.name for sample in samples],
        foreground=[float((chain.logits(n) > 0).mean()) for n, _ in enumerate(samples)],
        budget=budget,
        whole=whole,
        blocks=[trials.summary(block, blocks[block.name]) for block in chain.blocks],
        nodes=found,
        guilty=_guilty(found, kinds, budget),
        skipped=clock.skipped,
        seconds=round(clock.seconds, 1),
    )


@dataclass
class _Clock:
    """The time left; what it did not allow."""

    minutes: float
    skipped: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)
    _longest: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def allows(self, what: str) -> bool:
        """Return whether there is time for a step, and note it if not."""
        enough = self.seconds + self._longest < 60 * self.minutes
        if not enough and what not in self.skipped:
            self.skipped.append(what)
        return enough

    def timed(self, step: Callable[[], Effect]) -> Effect:
        """Take a step, and remember how long the longest took."""
        begun = time.monotonic()
        effect = step()
        self._longest = max(self._longest, time.monotonic() - begun)
        return effect


class Trials:
    """Runs of a chain with something rounded, compared with float32."""

    def __init__(self, chain: Chain, ranges: Mapping[str, NodeRange]) -> None:
        self.chain = chain
        self.ranges = ranges
        self._worst: dict[tuple[str, Kind], int] = {}

    def named(self, block: Block, kind: Kind) -> dict[str, Kind]:
        """Return a block's nodes that have a form in a type."""
        return {node.name: kind for node in block.nodes if applies(node, kind)}

    def everything(self, kind: Kind) -> Effect:
        """Round all nodes that have a form in a type."""
        return self.mixed({n: k for b in self.chain.blocks for n, k in self.named(b, kind).items()})

    def few(self, worst: int = 0) -> list[int]:
        """Return the samples to try single nodes on: all; in a large model one."""
        small = sum(each.flops for each in self.ranges.values()) < _SMALL
        return list(range(len(self.chain.samples))) if small else [worst]

    def mixed(self, kinds: Mapping[str, Kind], samples: Sequence[int] | None = None) -> Effect:
        """Round some nodes, each in its type, on some samples or all."""
        models = {
            number: rounded(block, kinds)
            for number, block in enumerate(self.chain.blocks)
            if any(node.name in kinds for node in block.nodes)
        }
        chosen = range(len(self.chain.samples)) if samples is None else samples
        return self._compared(models, chosen)[0]

    def block(self, number: int, kind: Kind) -> Effect:
        """Round one block, and remember the sample that it hurts most."""
        block = self.chain.blocks[number]
        model = rounded(block, self.named(block, kind))
        effect, worst = self._compared({number: model}, range(len(self.chain.samples)))
        self._worst[block.name, kind] = worst
        return effect

    def node(self, number: int, node: Node, kind: Kind) -> Effect:
        """Round one node; in a large model, only on the sample that its block hurts most."""
        model = rounded(self.chain.blocks[number], {node.name: kind})
        samples = self.few(self._worst.get((node.block, kind), 0))
        return self._compared({number: model}, samples)[0]

    def overflows(self, node: Node) -> dict[Kind, str]:
        """Return the types that cannot hold something of a node, and what of it."""
        seen, found = self.ranges[node.name], dict[Kind, str]()
        for kind in HALVES:
            for what, extent in (
                ("takes", seen.takes),
                ("weights", seen.weights),
                ("gives", seen.gives),
            ):
                if kind not in found and extent is not None and extent.beyond(LARGEST[kind]):
                    found[kind] = what
        return found

    def forecasts(self, effects: Mapping[str, dict[Kind, Effect]]) -> list[NodeForecast]:
        """Describe every node."""
        return [
            NodeForecast(
                name=node.name,
                operator=node.operator,
                layer=node.layer,
                block=node.block,
                flops=self.ranges[node.name].flops,
                takes=self.ranges[node.name].takes,
                weights=self.ranges[node.name].weights,
                gives=self.ranges[node.name].gives,
                overflows=self.overflows(node),
                effects=effects.get(node.name, {}),
            )
            for block in self.chain.blocks
            for node in block.nodes
        ]

    def summary(self, block: Block, effects: dict[Kind, Effect]) -> BlockForecast:
        """Describe a block."""
        gives = [self.ranges[node.name].gives for node in block.nodes]
        largest = [each.largest for each in gives]
        return BlockForecast(
            name=block.name,
            nodes=len(block.nodes),
            flops=sum(self.ranges[node.name].flops for node in block.nodes),
            largest=None if None in largest else max(v for v in largest if v is not None),
            high=max(each.high for each in gives),
            effects=effects,
        )

    def _compared(
        self, models: Mapping[int, onnx.ModelProto], samples: Iterable[int]
    ) -> tuple[Effect, int]:
        """Run samples; return the effect, and the sample with the worst logits."""
        chosen = list(samples)
        errors, same, either = [], 0, 0
        for sample, got in zip(chosen, self.chain.run(models, chosen), strict=True):
            wanted = self.chain.logits(sample)
            errors.append(relative_l2(got, wanted))
            same += int(((got > 0) & (wanted > 0)).sum())
            either += int(((got > 0) | (wanted > 0)).sum())
        worst = max(range(len(chosen)), key=errors.__getitem__)
        finite = errors[worst] != float("inf")
        effect = Effect(
            logits=errors[worst] if finite else None,
            mask_iou=(same / either if either else 1.0) if finite else 0.0,
            samples=len(chosen),
        )
        return effect, chosen[worst]


def _suspects(
    trials: Trials,
    blocks: Mapping[str, Mapping[Kind, Effect]],
    kinds: Sequence[Kind],
    budget: float,
) -> Iterable[tuple[int, Node, Kind]]:
    """Yield the nodes of guilty blocks, a kind at a time, the worst block first.

    Left out are nodes that get what is too large for the type: an earlier node made it.
    """
    for kind in kinds:
        tried = [n for n, b in enumerate(trials.chain.blocks) if kind in blocks[b.name]]
        order = sorted(tried, key=lambda n: _badness(blocks[trials.chain.blocks[n].name][kind]))
        bad = [n for n in order if not blocks[trials.chain.blocks[n].name][kind].keeps(budget)]
        for number in bad or order[-_CURIOUS:]:
            for node in trials.chain.blocks[number].nodes:
                if applies(node, kind) and trials.overflows(node).get(kind) != "takes":
                    yield number, node, kind


def _badness(effect: Effect) -> float:
    return float("inf") if effect.logits is None else effect.logits


def _guilty(nodes: Sequence[NodeForecast], kinds: Sequence[Kind], budget: float) -> list[Guilt]:
    """Return the nodes that break the budget alone."""
    found = []
    for kind in kinds:
        for node in nodes:
            reason = _reason(node, kind, budget)
            if reason:
                found.append(Guilt(node=node.name, layer=node.layer, kind=kind, reason=reason))
    return found


def _reason(node: NodeForecast, kind: Kind, budget: float) -> str:
    """Return why a node breaks the budget in a type; "" if it does not."""
    what, effect = node.overflows.get(kind), node.effects.get(kind)
    if what in {"gives", "weights"}:
        extent = node.gives if what == "gives" else node.weights
        largest = (
            "infinity" if extent is None or extent.largest is None else f"{extent.largest:.4g}"
        )
        made = "gives" if what == "gives" else "has a weight of"
        return f"overflows: {made} {largest}, {_NAMES[kind]} holds {LARGEST[kind]:.5g}"
    if effect is None or effect.keeps(budget):
        return ""
    if effect.logits is None:
        return "makes the logits infinite or not a number"
    return f"brings the mask's IoU to {effect.mask_iou:.4f}"
