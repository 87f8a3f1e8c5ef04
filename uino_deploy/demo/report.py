"""The demo's report: one HTML file that needs nothing beside it, meant to be looked at.

Pictures are PNGs inside the page and charts are inline SVG; there is no script and no link out.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

TRUTH_COLOUR = (64, 196, 255)
HIT_COLOUR = (46, 204, 113)
FALSE_COLOUR = (255, 82, 82)
MISSED_COLOUR = (255, 193, 7)


@dataclass(frozen=True)
class Example:
    """One query of the montage.

    Attributes:
        title: what is looked for, such as the character.
        support: uint8 [H, W, 3], the enrolled image.
        support_mask: uint8 [H, W] of 0 and 1.
        query: uint8 [H, W, 3].
        truth: uint8 [H, W] of 0 and 1.
        predicted: uint8 [H, W] of 0 and 1.
        iou: intersection over union of truth and prediction, 0 to 1.
        score: the model's own estimate of it.
    """

    title: str
    support: UInt8
    support_mask: UInt8
    query: UInt8
    truth: UInt8
    predicted: UInt8
    iou: float
    score: float


@dataclass(frozen=True)
class Headline:
    """One large number: its value, what it is, and a line of fine print."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Bar:
    """One row of the chart of mIoUs, in per cent."""

    label: str
    value: float
    accent: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table; a column whose cells all look like numbers is flush right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        title: the page's heading.
        lead: one sentence under it.
        failures: why it failed; empty when it passed.
        thresholds: the stated conditions of passing, one sentence each.
        headlines: three to five numbers.
        bars: the chart of mIoUs.
        ious: every query's IoU, 0 to 1, for the histogram.
        sections: (heading, examples) of the montage.
        tables: measured values.
        method: how it was measured, one paragraph each.
    """

    title: str
    lead: str
    failures: Sequence[str]
    thresholds: Sequence[str]
    headlines: Sequence[Headline]
    bars: Sequence[Bar]
    ious: Sequence[float]
    sections: Sequence[tuple[str, Sequence[Example]]]
    tables: Sequence[Table]
    method: Sequence[str]


def render(report: Report) -> str:
    """Return the page."""
    examples = "".join(_section(heading, shown) for heading, shown in report.sections)
    tables = "".join(_table(table) for table in report.tables)
    method = "".join(f"<p>{html.escape(text)}</p>" for text in report.method)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<div><h1>{html.escape(report.title)}</h1><p>{html.escape(report.lead)}</p></div>
{_verdict(report.failures)}
</header>
<main>
<div class="cards">{"".join(_headline(each) for each in report.headlines)}</div>
<div class="charts">
<figure><figcaption>mIoU, per cent</figcaption>{_bars(report.bars)}</figure>
<figure><figcaption>IoU of every query</figcaption>{_histogram(report.ious)}</figure>
</div>
<h2>What it sees</h2>
<p class="legend">{_LEGEND}</p>
{examples}
<h2>What was measured</h2>
<div class="tables">{tables}</div>
<h2>When it passes</h2>
<ul>{"".join(f"<li>{html.escape(text)}</li>" for text in report.thresholds)}</ul>
<h2>How it was measured</h2>
<div class="method">{method}</div>
</main>
</body>
</html>
"""


def paint(image: UInt8, masks: Sequence[tuple[npt.NDArray[np.bool_], Colour]]) -> UInt8:
    """Dim an image and paint regions of it: legible whatever the image's own colours are.

    Args:
        image: uint8 [H, W, 3].
        masks: (bool [H, W], colour) pairs; a later one is painted over an earlier one.

    Returns:
        uint8 [H, W, 3], a new image.
    """
    grey = image.mean(axis=2, keepdims=True)
    drawn = 0.35 * (0.6 * image + 0.4 * grey)
    for mask, colour in masks:
        drawn[mask] = 0.3 * image[mask] + 0.7 * np.array(colour, np.float64)
    painted: UInt8 = drawn.round().astype(np.uint8)
    return painted


def paint_prediction(image: UInt8, truth: UInt8, predicted: UInt8) -> UInt8:
    """Paint what a prediction found rightly, marked wrongly, and missed.

    Args:
        image: uint8 [H, W, 3].
        truth: [H, W], non-zero is foreground.
        predicted: [H, W], likewise.

    Returns:
        uint8 [H, W, 3], a new image.
    """
    real, found = truth != 0, predicted != 0
    regions = (
        (real & found, HIT_COLOUR),
        (found & ~real, FALSE_COLOUR),
        (real & ~found, MISSED_COLOUR),
    )
    return paint(image, regions)


def _verdict(failures: Sequence[str]) -> str:
    if not failures:
        return '<div class="verdict passed">PASSED</div>'
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in failures)
    return f'<div class="verdict failed">FAILED<ul>{reasons}</ul></div>'


def _headline(headline: Headline) -> str:
    return (
        f'<div class="card"><div class="value">{html.escape(headline.value)}</div>'
        f'<div class="label">{html.escape(headline.label)}</div>'
        f'<div class="note">{html.escape(headline.note)}</div></div>'
    )


def _section(heading: str, examples: Sequence[Example]) -> str:
    cards = "".join(_example(example) for example in examples)
    return f'<h3>{html.escape(heading)}</h3><div class="montage">{cards}</div>'


def _example(example: Example) -> str:
    support = paint(example.support, [(example.support_mask != 0, TRUTH_COLOUR)])
    truth = paint(example.query, [(example.truth != 0, TRUTH_COLOUR)])
    predicted = paint_prediction(example.query, example.truth, example.predicted)
    pictures = (
        ("support", support),
        ("query", example.query),
        ("truth", truth),
        ("prediction", predicted),
    )
    strip = "".join(
        f'<figure><img alt="{name}" src="{_data_uri(picture)}"><figcaption>{name}</figcaption>'
        "</figure>"
        for name, picture in pictures
    )
    grade = "good" if example.iou >= 0.75 else "fair" if example.iou >= 0.5 else "poor"
    return (
        f'<div class="example"><div class="head"><b>{html.escape(example.title)}</b>'
        f'<span class="{grade}">IoU {100 * example.iou:.0f}</span>'
        f'<span class="guess">own estimate {100 * example.score:.0f}</span></div>'
        f'<div class="strip">{strip}</div></div>'
    )


def _data_uri(image: UInt8) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _bars(bars: Sequence[Bar]) -> str:
    """Draw horizontal bars from 0 to 100."""
    height, left, width = 34, 190, 300
    rows = []
    for index, bar in enumerate(bars):
        y = index * height
        length = width * max(0.0, min(bar.value, 100.0)) / 100
        kind = "bar accent" if bar.accent else "bar"
        rows.append(
            f'<text x="{left - 10}" y="{y + 20}" text-anchor="end">{html.escape(bar.label)}</text>'
            f'<rect class="track" x="{left}" y="{y + 6}" width="{width}" height="20" rx="4"/>'
            f'<rect class="{kind}" x="{left}" y="{y + 6}" width="{length:.1f}" height="20" rx="4"/>'
            f'<text class="number" x="{left + width + 10}" y="{y + 20}">{bar.value:.1f}</text>'
        )
    box = f"0 0 {left + width + 60} {height * len(bars)}"
    return f'<svg viewBox="{box}" role="img">{"".join(rows)}</svg>'


def _histogram(ious: Sequence[float]) -> str:
    """Draw how many queries fall into each tenth of the IoU."""
    counts, _ = np.histogram(np.clip(ious, 0, 1), bins=10, range=(0, 1))
    tallest = max(1, int(counts.max()))
    columns = []
    for index, count in enumerate(counts):
        x, height = 20 + index * 50, 100 * int(count) / tallest
        columns.append(
            f'<rect class="bar accent" x="{x}" y="{122 - height:.1f}" width="42" '
            f'height="{height:.1f}" rx="3"/>'
            f'<text class="number" x="{x + 21}" y="{116 - height:.1f}" text-anchor="middle">'
            f"{count}</text>"
        )
    ticks = "".join(
        f'<text x="{16 + 50 * step}" y="140" text-anchor="middle">{10 * step}</text>'
        for step in range(11)
    )
    return f'<svg viewBox="0 0 540 148" role="img">{"".join(columns)}{ticks}</svg>'


def _table(table: Table) -> str:
    right = [
        bool(table.rows) and all(_is_number(row[index]) for row in table.rows)
        for index in range(len(table.columns))
    ]
    head = _cells("th", table.columns, right)
    body = "".join(f"<tr>{_cells('td', row, right)}</tr>" for row in table.rows)
    title = html.escape(table.title)
    return (
        f"<div><h3>{title}</h3><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(tag: str, texts: Iterable[str], right: Sequence[bool]) -> str:
    return "".join(
        f"<{tag}{' class=right' if flush else ''}>{html.escape(text)}</{tag}>"
        for text, flush in zip(texts, right, strict=True)
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in {"-", "+", "\N{MINUS SIGN}"}


def _swatch(colour: Colour, meaning: str) -> str:
    return f'<i style="background:rgb{colour}"></i>{meaning}'


_LEGEND = " ".join(
    (
        _swatch(TRUTH_COLOUR, "the given truth"),
        _swatch(HIT_COLOUR, "found rightly"),
        _swatch(FALSE_COLOUR, "marked wrongly"),
        _swatch(MISSED_COLOUR, "missed"),
    )
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #667085; --paper: #f6f7f9;
  --card: #fff; --line: #e3e6ec; --accent: #2563eb; --bar: #b9c3d6; --good: #12934f;
  --fair: #b07800; --poor: #d13438; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --paper: #12151b;
  --card: #1b2029; --line: #2c3340; --accent: #6ea0ff; --bar: #4a5568; --good: #43c983;
  --fair: #e0b03a; --poor: #ff7a7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { display: flex; gap: 32px; align-items: flex-start; justify-content: space-between;
  padding-top: 40px; padding-bottom: 8px; }
h1 { margin: 0; font-size: 30px; letter-spacing: -0.02em; line-height: 1.2; }
header p { margin: 8px 0 0; color: var(--soft); max-width: 62ch; }
h2 { margin: 48px 0 8px; font-size: 21px; letter-spacing: -0.01em; }
h3 { margin: 24px 0 10px; font-size: 14px; color: var(--soft); font-weight: 600; }
.verdict { padding: 10px 20px; border-radius: 10px; font-weight: 700; letter-spacing: 0.04em;
  color: #fff; max-width: 420px; }
.passed { background: #12934f; } .failed { background: #c62f33; }
.verdict ul { margin: 6px 0 0; padding-left: 18px; font-weight: 400; letter-spacing: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  margin-top: 20px; }
.card, .charts figure, .example, .tables > div { background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 18px 20px; }
.value { font-size: 34px; font-weight: 700; letter-spacing: -0.03em; line-height: 1.1;
  font-variant-numeric: tabular-nums; }
.label { margin-top: 6px; font-weight: 600; } .note { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px;
  margin-top: 14px; }
.charts figure { margin: 0; padding: 16px 20px; }
figcaption { color: var(--soft); font-size: 13px; } .charts figcaption { margin-bottom: 10px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 13px; }
svg .number { fill: var(--ink); font-weight: 600; } .track { fill: var(--paper); }
.bar { fill: var(--bar); } .bar.accent { fill: var(--accent); }
.legend { color: var(--soft); margin: 0; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin: 0 6px -1px 14px; } .legend i:first-child { margin-left: 0; }
.montage { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 14px; }
.example { padding: 12px 14px; }
.head { display: flex; gap: 12px; align-items: baseline; margin-bottom: 8px; }
.head b { font-size: 17px; margin-right: auto; } .guess { color: var(--soft); font-size: 13px; }
.good { color: var(--good); font-weight: 700; } .fair { color: var(--fair); font-weight: 700; }
.poor { color: var(--poor); font-weight: 700; }
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; }
.strip figure { margin: 0; } .strip img { width: 100%; display: block; border-radius: 6px;
  image-rendering: pixelated; }
.strip figcaption { text-align: center; margin-top: 3px; font-size: 12px; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.tables > div { padding: 4px 20px 16px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } .right { text-align: right; }
ul { padding-left: 20px; margin: 8px 0; } .method { max-width: 78ch; }
main { padding-bottom: 64px; }
@media (max-width: 640px) { header { flex-direction: column; gap: 14px; }
  .charts, .montage, .tables { grid-template-columns: 1fr; } }
@media print { body { background: #fff; } .example { break-inside: avoid; } }
"""
