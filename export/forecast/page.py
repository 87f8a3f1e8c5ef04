"""The forecast as a page: the whole, a strip over depth, ranges, and the nodes at fault."""

from __future__ import annotations

import math

from uino_deploy.charts import Chart, dots
from uino_deploy.export.forecast.results import WHOLE, Effect, Forecast
from uino_deploy.export.forecast.rounding import LARGEST
from uino_deploy.export.forecast.tables import (
    Rows,
    block_rows,
    guilty_rows,
    heaviest_rows,
    kind_name,
    remarks,
    whole_rows,
)
from uino_deploy.page import Block, Section, Table, Text, Verdict, page

_MOST = 40  # nodes of each type
_FAINTEST, _STRONGEST = -6, 0  # decades of error that shades span

METHOD = (
    "float16 and bfloat16 round every float input and output of a node; what is too large becomes "
    "infinite. Sums, norms and softmax are float32 inside.",
    "TF32, int8 and fp8 concern products alone and round their inputs: TF32 to 10 bits of "
    "fraction; int8 and fp8 by the largest magnitude of each output channel of a weight and of "
    "each token of an activation (a convolution's input has one scale). Their outputs are float32.",
    "An engine that fuses nodes rounds less between them, so errors are upper bounds in kind, not "
    "guarantees: they say where to look, and verify and selftest say what a machine does.",
    "A node is guilty in a type if it alone, rounded, breaks the budget of mask IoU.",
)


def write_page(forecast: Forecast) -> str:
    """Return the page as HTML.

    Raises:
        DependencyError: Jinja2 or matplotlib is not installed.
    """
    whole = _table("All nodes that have a form in a type", whole_rows(forecast))
    notes = [Text(lines, listed=True)] if (lines := remarks(forecast)) else []
    depth: list[Block] = [_strip(forecast), _errors(forecast), _ranges(forecast)]
    tried = any(node.effects for node in forecast.nodes)
    none = "None." if tried else "No node was tried."
    guilty = _found("Break the budget alone", guilty_rows(forecast, _MOST), none)
    heaviest = _found("Of the nodes that were tried", heaviest_rows(forecast, _MOST), none)
    return page(
        f"Precision of {forecast.bundle}",
        [
            f"What each type would do to {forecast.bundle} ({forecast.preset}), simulated on "
            f"{', '.join(forecast.samples)}. The budget is a mask IoU of {forecast.budget} with "
            "float32."
        ],
        [_verdict(forecast)],
        [
            Section("The whole", [whole, *notes]),
            Section("Over depth", depth),
            Section("Guilty nodes", guilty),
            Section("Largest errors", heaviest),
            Section("Method", [Text(METHOD, listed=True)]),
        ],
    )


def _verdict(forecast: Forecast) -> Verdict:
    """Return what the forecast says; it passes only if each type was run and could have failed."""
    over = [kind for kind, effect in forecast.whole.items() if not effect.keeps(forecast.budget)]
    over += dict.fromkeys(each.kind for each in forecast.guilty if each.kind not in forecast.whole)
    reasons = [f"{g.node} in {kind_name(g.kind)}: {g.reason}" for g in forecast.guilty[:3]]
    if over:
        return Verdict(f"Over the budget: {', '.join(map(kind_name, over))}", "failed", reasons)
    missing = [each for each in forecast.skipped if each.endswith(WHOLE)]
    if missing:
        return Verdict("Not every type was forecast", "disturbed", missing)
    if not any(forecast.foreground):
        return Verdict("No mask to judge by", "disturbed", ["every float32 mask is empty"])
    kept = ", ".join(map(kind_name, forecast.whole))
    return Verdict(f"In the budget: {kept}", "passed", reasons)


def _table(title: str, rows: Rows) -> Table:
    return Table(title, *rows)


def _found(title: str, rows: Rows, none: str) -> list[Table | Text]:
    return [_table(title, rows)] if rows[1] else [Text([none])]


def _strip(forecast: Forecast) -> Table:
    """Return the blocks in their order, each type's error the darker the larger."""
    header, rows = block_rows(forecast)
    kinds = list(forecast.whole)
    shades = {
        (row, 1 + column): _shade(block.effects[kind])
        for row, block in enumerate(forecast.blocks)
        for column, kind in enumerate(kinds)
        if kind in block.effects
    }
    return Table(
        "Relative L2 error of the logits with one block in a type", header, rows, shades=shades
    )


def _shade(effect: Effect) -> float:
    if effect.logits is None:
        return 1.0
    decades = math.log10(max(effect.logits, 10.0**_FAINTEST)) - _FAINTEST
    return min(1.0, decades / (_STRONGEST - _FAINTEST))


def _errors(forecast: Forecast) -> Chart:
    kinds = list(forecast.whole)
    return dots(
        "Error by block",
        "relative L2 error of the logits",
        [kind_name(kind) for kind in kinds],
        [
            (block.name, [_finite(block.effects.get(kind)) for kind in kinds])
            for block in forecast.blocks
        ],
    )


def _finite(effect: Effect | None) -> float | None:
    return None if effect is None else effect.logits


def _ranges(forecast: Forecast) -> Chart:
    return dots(
        f"Range by block; float16 ends at {LARGEST['fp16']:.0f}",
        "magnitude",
        ["largest", "99.99th percentile", "float16's limit"],
        [(block.name, [block.largest, block.high, LARGEST["fp16"]]) for block in forecast.blocks],
    )
