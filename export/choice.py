"""The type of each node: float16 where it keeps the budget of mask IoU, float32 where it does not.

All that float16 can hold starts in float16. If that breaks the budget, blocks return to float32,
those first that bring the most squared error for the work that float16 saves, until the whole keeps
it. A single node's island would not help then: its neighbours round what it takes and gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from uino_deploy.bundle import Bundle, Decision
from uino_deploy.errors import InputError
from uino_deploy.export.forecast.blocks import Block, Node
from uino_deploy.export.forecast.chain import Chain, Sample
from uino_deploy.export.forecast.forecast import Trials
from uino_deploy.export.forecast.ranges import measure_ranges
from uino_deploy.export.forecast.rounding import LARGEST, Kind
from uino_deploy.kernels.identity import DOMAIN

# Other images have other extremes: a node stays float32 if twice its values would overflow.
HEADROOM = 2.0
# Share of the budget's loss that the images of the choice may use; the rest is for other images.
MARGIN = 0.5
# What an element saves in float16, in operations: four bytes less to write and to read, on devices
# that do 25 to 100 operations in the time of a byte.
ELEMENT = 100
_NOT_FINITE = 1e6  # the error that counts for one that is not finite


def choose_types(
    bundle: Bundle,
    samples: Sequence[Sample],
    example: Sample,
    budget: float,
    progress: Callable[[str], None] = lambda _note: None,
) -> tuple[set[str], Decision]:
    """Choose float16 or float32 for each node of a float32 bundle.

    Args:
        bundle: float32.
        samples: images to choose on.
        example: that stored in the bundle, to forecast its error in the chosen types.
        budget: the least IoU of the masks with float32's.
        progress: called with a note before each step.

    Returns:
        The nodes that compute in float16, by their names in the joined query, and the decision.

    Raises:
        InputError: float32 finds nothing in any of the images, so that no mask could change.
    """
    progress("choosing types: float32")
    chain = Chain(bundle, [*samples, example])
    own = range(len(samples))
    if not any((chain.logits(number) > 0).any() for number in own):
        raise InputError(
            "float32's masks of all images are empty, so no budget of mask IoU can be kept",
            "give other images, or a precision for each piece",
        )
    trials = Trials(chain, measure_ranges(chain))
    nodes = [node for block in chain.blocks for node in block.nodes]
    kept = _beyond_float16(nodes, trials)
    waiting: list[tuple[Block, str]] | None = None
    while True:
        halves = {node.name for node in nodes} - kept.keys()
        progress(f"choosing types: {len(halves)} of {len(nodes)} nodes in float16")
        types: dict[str, Kind] = dict.fromkeys(halves, "fp16")
        effect, stored = trials.mixed(types, own), trials.mixed(types, [len(samples)])
        finite = stored.logits is not None
        if finite and (effect.keeps(1 - MARGIN * (1 - budget)) or not halves):
            break
        if waiting is None:
            waiting = _worst_first(trials, halves, progress)
        block, reason = waiting.pop(0)
        kept |= dict.fromkeys(_together(block, chain.blocks) - kept.keys(), reason)
    flops = {node.name: trials.ranges[node.name].flops for node in nodes}
    return halves, Decision(
        min_mask_iou=budget,
        samples=[sample.name for sample in samples],
        half_flops=sum(flops[name] for name in halves) / (sum(flops.values()) or 1),
        float32={n.name: f"{n.layer}: {kept[n.name]}" for n in nodes if n.name in kept},
        logits_error=effect.logits or 0.0,
        example_error=stored.logits or 0.0,
        mask_iou=effect.mask_iou,
    )


def _beyond_float16(nodes: Sequence[Node], trials: Trials) -> dict[str, str]:
    """Return the nodes that take, hold or give what float16 may not hold, and why."""
    found = {}
    for node in nodes:
        seen = trials.ranges[node.name]
        for what, extent in (("takes", seen.takes), ("holds", seen.weights), ("gives", seen.gives)):
            if extent is not None and extent.beyond(LARGEST["fp16"] / HEADROOM):
                largest = "infinity" if extent.largest is None else f"{extent.largest:.4g}"
                found[node.name] = f"{what} {largest}, float16 ends at {LARGEST['fp16']:.0f}"
    ours = [node.name for node in nodes if _is_ours(node)]
    if found.keys() & set(ours):
        found |= dict.fromkeys(set(ours) - found.keys(), "another of our operators is float32")
    return found


def _worst_first(
    trials: Trials, halves: Collection[str], progress: Callable[[str], None]
) -> list[tuple[Block, str]]:
    """Return the blocks and why each is float32, the most squared error for the work first."""
    errors, ratios = {}, {}
    for block in trials.chain.blocks:
        progress(f"choosing types: {block.name}")
        names = [node.name for node in block.nodes if node.name in halves]
        logits = trials.mixed(dict.fromkeys(names, "fp16"), trials.few()).logits
        errors[block.name] = (_NOT_FINITE if logits is None else logits) ** 2
        ranges = [trials.ranges[name] for name in names]
        saving = sum(each.flops + ELEMENT * each.elements for each in ranges)
        ratios[block.name] = errors[block.name] / max(saving, 1)
    total = sum(errors.values()) or 1.0
    order = sorted(trials.chain.blocks, key=lambda block: -ratios[block.name])
    return [
        (b, f"{b.name} brings {100 * errors[b.name] / total:.1f} % of float16's error")
        for b in order
    ]


def _together(block: Block, blocks: Sequence[Block]) -> set[str]:
    """Return the nodes that change their type with a block.

    Our operators do so together: a piece has one function for each, in one type.
    """
    names = {node.name for node in block.nodes}
    if any(_is_ours(node) for node in block.nodes):
        names |= {node.name for each in blocks for node in each.nodes if _is_ours(node)}
    return names


def _is_ours(node: Node) -> bool:
    return node.proto.domain == DOMAIN
