"""The ledger for readers: rows of a table, and a page with bars."""

from __future__ import annotations

from html import escape
from typing import Any

from uino_deploy.errors import InputError

_HEADER = [
    "kernel",
    "arch",
    "type",
    "shape",
    "registers",
    "spilled",
    "shared",
    "occupancy",
    "programs",
    "serial steps",
    "asked MB",
    "must MB",
    "unfused MB",
    "counted on",
]


def rows(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and one line of cells for each record."""
    return _HEADER, [_row(r) for r in records]


def _row(r: dict[str, Any]) -> list[str]:
    asked = "-" if r["requested_bytes"] is None else _mb(r["requested_bytes"] + r["written_bytes"])
    return [
        f"{r['op']} {r['config']}",
        r["arch"],
        r["dtype"],
        _shape(r["shape"]),
        str(r["registers"]),
        str(r["spill_bytes"]),
        str(r["shared_bytes"]),
        f"{r['occupancy']:.2f}",
        str(r["programs"]),
        str(r["serial_steps"]),
        asked,
        _mb(r["compulsory_bytes"]),
        _mb(r["unfused_bytes"]),
        r["counted_on"] or "-",
    ]


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _shape(shape: dict[str, int]) -> str:
    if "sequences" in shape:
        return f"{shape['sequences']} x {shape['height']}x{shape['width']}, D {shape['channels']}"
    grid = f"{shape['height']}x{shape['width']}"
    return f"{shape['layers']} x {shape['n_query']} x {grid}, D {shape['channels']}"


_BEGIN, _END = "<!-- ledger begins -->\n", "<!-- ledger ends -->\n"


def renew(text: str, records: list[dict[str, Any]]) -> str:
    """Return a Markdown text with the ledger's table between its two marks.

    Raises:
        InputError: the text has no marks.
    """
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise InputError("the Markdown file has no place for the ledger", f"mark it with {_BEGIN}")
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    header, lines = rows(records)
    table = [header, ["---"] * len(header), *lines]
    body = "".join("| " + " | ".join(line) + " |\n" for line in table)
    return before + _BEGIN + body + _END + after


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left }
tr:nth-child(even) { background: #8881 } .wide { overflow-x: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
"""

_BARS = (
    ("must", "compulsory_bytes", "#4a7"),
    ("asked", None, "#48c"),
    ("unfused", "unfused_bytes", "#c64"),
)


def page(records: list[dict[str, Any]]) -> str:
    """Return the ledger as one HTML page without scripts or outside resources."""
    header, lines = rows(records)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    floors = "".join(_floors(r) for r in records)
    plots = "".join(_plot(r) for r in records)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Kernel ledger</title><style>{_STYLE}</style></head><body>"
        "<h1>Kernel ledger</h1><p>Global memory traffic was counted by executing the PTX on a CPU,"
        " scaled from whole blocks. Nothing was timed. Floors are rooflines from data sheets: no"
        " kernel can be faster; none is predicted to be as fast.</p>"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        f"<h2>Bytes, megabytes</h2>{plots}"
        "<h2>Floors, microseconds</h2><table><tr><th>kernel</th><th>board</th><th>at least</th>"
        f"</tr>{floors}</table></body></html>\n"
    )


def _plot(r: dict[str, Any]) -> str:
    asked = None if r["requested_bytes"] is None else r["requested_bytes"] + r["written_bytes"]
    values = [(n, asked if key is None else r[key], colour) for n, key, colour in _BARS]
    known = [(n, v, colour) for n, v, colour in values if v is not None]
    largest = max(v for _, v, _ in known)
    bars = "".join(
        f'<text x="0" y="{20 * i + 14}">{name}</text>'
        f'<rect x="70" y="{20 * i + 3}" width="{400 * v / largest:.1f}" height="14"'
        f' fill="{colour}"/>'
        f'<text x="{76 + 400 * v / largest:.1f}" y="{20 * i + 14}">{_mb(v)}</text>'
        for i, (name, v, colour) in enumerate(known)
    )
    title = f"{r['op']} {r['config']}, {r['dtype']}, {r['arch']}, {_shape(r['shape'])}"
    return f'<h3>{escape(title)}</h3><svg width="560" height="{20 * len(known) + 4}">{bars}</svg>'


def _floors(r: dict[str, Any]) -> str:
    name = f"{r['op']} {r['config']}, {r['dtype']}, {_shape(r['shape'])}"
    return "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(board)}</td><td>{us:.1f}</td></tr>"
        for board, us in r["floor_us"].items()
    )
