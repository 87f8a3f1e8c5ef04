"""The ledger as one HTML page: bytes and floors as plots, resources and all records as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from uino_deploy.benchmarks.ledger.boards import BOARDS
from uino_deploy.benchmarks.ledger.rows import (
    HEADER,
    Record,
    kernel_name,
    megabytes,
    rows,
    shape_text,
    unique,
)

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr:nth-child(even) { background: #8881 } .wide { overflow-x: auto }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: #8884 } .legend span { margin-right: 1.2rem; white-space: nowrap }
"""

_INTRO = """<h1>Kernel ledger</h1>
<p>What each compiled kernel holds, computes and moves. Global memory traffic was counted by
executing the PTX on a CPU, scaled from whole blocks; registers, spills and stack are the
assembler's; what mamba-ssm moves was counted in the same way on its own CUDA kernel. Nothing was
timed. Floors are rooflines from data sheets: no kernel can be faster, none is predicted to be as
fast.</p>"""


class Series(NamedTuple):
    """One kind of mark in a plot: its name, colour, and value in a record (None: no mark)."""

    name: str
    colour: str
    value: Callable[[Record], float | None]


def _sum_of(prefix: str) -> Callable[[Record], float | None]:
    def value(r: Record) -> float | None:
        if r.get(f"{prefix}requested_bytes") is None:
            return None
        total: float = r[f"{prefix}requested_bytes"] + r[f"{prefix}written_bytes"]
        return total

    return value


def _floor(board: str) -> Callable[[Record], float | None]:
    return lambda r: r["floor_us"].get(board)


_BYTES = (
    Series(
        "must: each array once, the scan's x once a direction",
        "#2a9d55",
        lambda r: r["compulsory_bytes"],
    ),
    Series("asked for by this kernel", "#2f7fd6", _sum_of("")),
    Series("asked for by mamba-ssm's kernel", "#d08b1d", _sum_of("mamba_ssm_")),
    Series("moved by PyTorch's operators", "#c8453a", lambda r: r["unfused_bytes"]),
)
_COLOURS = ("#2f7fd6", "#c8453a", "#2a9d55", "#d08b1d", "#8a5cc2", "#1ba3a3", "#c2559b", "#777777")
_FLOORS = tuple(
    Series(board.name, colour, _floor(board.name))
    for board, colour in zip(BOARDS, _COLOURS, strict=True)
)


def page(records: list[Record]) -> str:
    """Return the ledger as one HTML page without scripts or outside resources."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Kernel ledger</title><style>{_STYLE}</style></head><body>{_INTRO}"
        f"{''.join(_body(records))}</body></html>\n"
    )


def _body(records: list[Record]) -> Iterator[str]:
    archs = unique(r["arch"] for r in records)
    for arch in ["sm_87"] if "sm_87" in archs else archs[:1]:
        yield f"<h2>Bytes of one launch, megabytes ({arch})</h2>"
        yield _dots([r for r in records if r["arch"] == arch], _BYTES, megabytes, 1e6)
    floors = _merged_floors(records)
    if floors:
        yield "<h2>Floors, microseconds</h2>"
        yield _dots(floors, _FLOORS, lambda us: f"{us:.3g}", 1)
        yield _sources()
    yield "<h2>Registers a thread, and occupancy</h2>" + _resources(records)
    yield "<h2>All records</h2>" + _table(HEADER, rows(records))


def _merged_floors(records: list[Record]) -> list[Record]:
    """Return one record for each kernel, type and shape, with the boards of every architecture."""
    merged: dict[tuple[str, str, str], Record] = {}
    for r in records:
        key = (kernel_name(r), r["dtype"], shape_text(r["shape"]))
        before = merged.get(key, r)["floor_us"]
        merged[key] = {**r, "floor_us": {**before, **r["floor_us"]}}
    return [r for r in merged.values() if r["floor_us"]]


_LEFT, _WIDTH, _ROW = 400, 1040, 20


def _dots(
    records: list[Record], series: Sequence[Series], text: Callable[[float], str], unit: float
) -> str:
    """Return a plot with one line for each record and its series as dots on a logarithmic axis."""
    values = [[s.value(r) for s in series] for r in records]
    known = [v for line in values for v in line if v]
    if not known:
        return "<p>Nothing was counted.</p>"
    low = math.floor(math.log10(min(known) / unit))
    high = max(math.ceil(math.log10(max(known) / unit)), low + 1)

    def place(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 30) * (math.log10(value / unit) - low) / (high - low)

    height = _ROW * len(records)
    parts = [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{10.0**power:g}</text>'
        for power in range(low, high + 1)
        for x in [place(10.0**power * unit)]
    ]
    for line, (r, found) in enumerate(zip(records, values, strict=True)):
        y = _ROW * line + _ROW / 2
        label = f"{kernel_name(r)}, {r['dtype']}, {shape_text(r['shape'])}"
        short = label.replace("correlation4d", "corr.").replace("selective_scan2d", "scan")
        parts.append(f'<text x="0" y="{y + 4}">{escape(short)}</text>')
        marks = [(place(v), v, s) for v, s in zip(found, series, strict=True) if v]
        if marks:
            ends = min(marks)[0], max(marks)[0]
            parts.append(
                f'<line class="grid" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>'
            )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{s.colour}" fill-opacity=".85">'
            f"<title>{escape(f'{label}: {s.name}, {text(v)}')}</title></circle>"
            for x, v, s in marks
        ]
    legend = "".join(
        f'<span><b style="color:{s.colour}">●</b> {escape(s.name)}</span>' for s in series
    )
    box = f"0 0 {_WIDTH} {height + 22}"
    return (
        f'<figure><div class="legend">{legend}</div><svg viewBox="{box}" width="{_WIDTH}" '
        f'role="img">{"".join(parts)}</svg></figure>'
    )


def _sources() -> str:
    lines = [
        [
            *(b.name, b.arch),
            *(f"{rate:g}" for rate in (b.bandwidth, b.half_tflops, b.float32_tflops)),
            *(b.source, b.checked),
        ]
        for b in BOARDS
    ]
    header = ["board", "arch", "GB/s", "half TFLOP/s", "float32 TFLOP/s", "source", "read at"]
    return _table(header, lines)


def _resources(records: list[Record]) -> str:
    """Return a table of variants by architectures, shaded by occupancy."""
    archs = unique(r["arch"] for r in records)
    held = {(kernel_name(r), r["dtype"], r["arch"]): r for r in records}
    head = "".join(f"<th>{escape(c)}</th>" for c in ["kernel", "type", *archs])
    body = ""
    for name, dtype in unique((k[0], k[1]) for k in held):
        body += f"<tr><td>{escape(name)}</td><td>{dtype}</td>"
        body += "".join(_resource(held.get((name, dtype, arch))) for arch in archs) + "</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _resource(r: Record | None) -> str:
    if r is None:
        return "<td>-</td>"
    shade = f"background:rgba(47,127,214,{0.6 * r['occupancy']:.2f})"
    spilled = f", {r['spill_bytes']} B spilled" if r["spill_bytes"] else ""
    text = f"{r['registers']}, {100 * r['occupancy']:.0f} %{spilled}"
    return f'<td class="n" style="{shade}">{text}</td>'


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    number = text.replace(".", "").replace("-", "").replace("e", "").isdigit()
    return f"<td{' class=n' if number else ''}>{escape(text)}</td>"
