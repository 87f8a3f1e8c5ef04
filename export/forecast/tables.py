"""The forecast as rows of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uino_deploy.export.forecast.results import Effect, Forecast, NodeForecast
from uino_deploy.export.forecast.rounding import LARGEST, Kind

Rows = tuple[list[str], list[list[str]]]
_NAMES: dict[Kind, str] = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "tf32": "TF32",
    "int8": "int8",
    "fp8": "fp8 e4m3",
}


def whole_rows(forecast: Forecast) -> Rows:
    """Return the effect of each type on the whole model, and the blocks that break the budget."""
    rows = []
    for kind, effect in forecast.whole.items():
        bad = [
            block.name
            for block in forecast.blocks
            if kind in block.effects and not block.effects[kind].keeps(forecast.budget)
        ]
        kept = "yes" if effect.keeps(forecast.budget) else "no"
        rows.append(
            [
                _NAMES[kind],
                error_text(effect),
                f"{effect.mask_iou:.4f}",
                kept if kept == "no" or any(forecast.foreground) else "masks empty",
                f"{len(bad)} of {sum(kind in block.effects for block in forecast.blocks)}",
            ]
        )
    return ["everything in", "logits relative L2", "mask IoU", "in budget", "blocks over it"], rows


def block_rows(forecast: Forecast) -> Rows:
    """Return the error of each block in each type, in the order in which they run."""
    kinds = list(forecast.whole)
    total = sum(block.flops for block in forecast.blocks) or 1
    rows = [
        [
            block.name,
            *(error_text(block.effects.get(kind)) for kind in kinds),
            number_text(block.largest),
            f"{100 * block.flops / total:.1f}",
        ]
        for block in forecast.blocks
    ]
    return ["block", *kinds, "largest", "% FLOPs"], rows


def guilty_rows(forecast: Forecast, most: int) -> Rows:
    """Return the nodes that break the budget, of each type those that bring the most first."""
    nodes = {node.name: node for node in forecast.nodes}
    rows = []
    for kind in dict.fromkeys(each.kind for each in forecast.guilty):  # of ranges also without time
        found = [each for each in forecast.guilty if each.kind == kind]
        shown = sorted(found, key=lambda each: -_weight(nodes[each.node], kind))[:most]
        rows += [
            [
                _NAMES[kind],
                each.node,
                each.layer,
                *_range_cells(nodes[each.node]),
                error_text(nodes[each.node].effects.get(kind)),
                each.reason,
            ]
            for each in shown
        ]
    header = ["type", "node", "layer", "largest", "99.99 %", "subnormal", "logits", "why"]
    return header, rows


def heaviest_rows(forecast: Forecast, most: int) -> Rows:
    """Return, of each type, the nodes that bring most of its error, guilty or not."""
    rows = []
    for kind in forecast.whole:
        tried = [node for node in forecast.nodes if kind in node.effects]
        for node in sorted(tried, key=lambda node: -_weight(node, kind))[:most]:
            effect, share = node.effects[kind], forecast.share(node, kind)
            rows.append(
                [
                    _NAMES[kind],
                    node.name,
                    node.layer,
                    *_range_cells(node),
                    error_text(effect),
                    "-" if share is None else f"{100 * share:.1f}",
                    f"{effect.mask_iou:.4f}",
                ]
            )
    header = ["type", "node", "layer", "largest", "99.99 %", "subnormal", "logits", "% error"]
    return [*header, "mask IoU"], rows


def remarks(forecast: Forecast) -> list[str]:
    """Return what a reader must know of how the figures came about."""
    lines = []
    flows = [node for node in forecast.nodes if node.overflows.get("fp16") == "takes"]
    if flows:
        lines.append(
            f"{len(flows)} more nodes get values beyond {LARGEST['fp16']:.0f} from those that "
            f"overflow, {flows[0].name} first: they cannot be float16 either"
        )
    if forecast.skipped:
        lines.append(f"skipped for lack of time: {'; '.join(_gathered(forecast.skipped))}")
    empty = sum(share == 0 for share in forecast.foreground)
    if empty:
        lines.append(f"{empty} of {len(forecast.foreground)} float32 masks are empty")
    return lines


def error_text(effect: Effect | None) -> str:
    """Return the error of the logits as text."""
    if effect is None:
        return "-"
    return "not finite" if effect.logits is None else f"{effect.logits:.1e}"


def number_text(value: float | None) -> str:
    """Return a magnitude as text."""
    return "infinite" if value is None else f"{value:.4g}"


def kind_name(kind: Kind) -> str:
    """Return a type's name for people."""
    return _NAMES[kind]


def _range_cells(node: NodeForecast) -> list[str]:
    subnormal = node.gives.subnormal.get("fp16", 0.0)
    return [number_text(node.gives.largest), f"{node.gives.high:.4g}", f"{100 * subnormal:.2g}%"]


def _weight(node: NodeForecast, kind: Kind) -> float:
    effect = node.effects.get(kind)
    return float("inf") if effect is None or effect.logits is None else effect.logits


def _gathered(skipped: Sequence[str]) -> Iterable[str]:
    """Return what was skipped, a line for each type."""
    by_kind: dict[str, list[str]] = {}
    for each in skipped:
        kind, _, what = each.partition(": ")
        by_kind.setdefault(kind, []).append(what)
    for kind, names in by_kind.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"{kind}: {', '.join(names[:2])}{more}"
