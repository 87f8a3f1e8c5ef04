"""Charts as inline SVG, without scripts: stacked bars, points and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Told apart by most people with a colour deficiency (Okabe and Ito), each at two lightnesses.
COLOURS = ("#3b82c4", "#e08a1e", "#2a9d78", "#c8577f", "#8a6fd1", "#7a8699", "#b3a125", "#4fb3c9")

OURS = "uino-deploy"

_WIDTH = 720
_LABEL = 210
_RIGHT = 104


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        label: at the left.
        parts: lengths by the name of the part, from left to right.
        note: at the bar's end.
        low: where the spread's whisker begins; None for none.
        high: where it ends.
        faint: drawn lighter: not the product's own.
    """

    label: str
    parts: Mapping[str, float]
    note: str
    low: float | None = None
    high: float | None = None
    faint: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot, in the axes' own units."""

    label: str
    x: float
    y: float
    faint: bool = False


def stacked_bars(bars: Sequence[Bar], unit: str) -> str:
    """Draw horizontal bars, their parts in colours with a legend, on one linear scale from zero."""
    found = dict.fromkeys(name for bar in bars for name in bar.parts)
    names = sorted(found, key=lambda name: name != OURS)  # the product has one colour everywhere
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    longest = max((max(sum(bar.parts.values()), bar.high or 0) for bar in bars), default=0) or 1
    room, height, top = _WIDTH - _LABEL - _RIGHT, 26, 8
    step = _step(longest)
    rows = [_grid(step, longest, room, top, height * len(bars), unit)]
    for index, bar in enumerate(bars):
        y, x = top + index * height, float(_LABEL)
        rows.append(_text(_LABEL - 8, y + 15, bar.label, "end"))
        for name, value in bar.parts.items():
            length = room * value / longest
            opacity = "" if not bar.faint else ' opacity="0.55"'
            rows.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{length:.1f}" height="17" '
                f'fill="{colours[name]}"{opacity}><title>{escape(name)}: {value:.4g} '
                f"{escape(unit)}</title></rect>"
            )
            x += length
        if bar.low is not None and bar.high is not None:
            rows.append(_whisker(bar.low, bar.high, longest, room, y + 11))
            x = max(x, _LABEL + room * bar.high / longest)
        rows.append(_text(x + 6, y + 15, bar.note, "start", "number"))
    box = f"0 0 {_WIDTH} {top + height * len(bars) + 22}"
    chart = f'<svg viewBox="{box}" role="img">{"".join(rows)}</svg>'
    return (_legend(colours) if len(names) > 1 else "") + chart


def points(found: Sequence[Point], x_axis: str, y_axis: str) -> str:
    """Draw numbered points, listed at the right: linear from zero across, logarithmic upwards."""
    left, bottom, right, top = 60, 266, _WIDTH - 245, 26
    most = max((point.x for point in found), default=1) * 1.05
    ys = _decades([point.y for point in found])
    rows = _across(most, left, right, bottom, top)
    rows += _upwards(ys, left, right, bottom, top)
    rows.append(_text((left + right) / 2, bottom + 36, x_axis, "middle"))
    rows.append(_text(left - 50, top - 12, y_axis, "start"))
    for number, point in enumerate(found, 1):
        x, y = left + (right - left) * point.x / most, _place(point.y, ys, bottom, top)
        colour = COLOURS[5] if point.faint else COLOURS[0]
        at_list = top + 8 + 20 * (number - 1)
        for cx, cy in ((x, y), (right + 28, at_list)):
            rows.append(
                f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="8" fill="{colour}" stroke="var(--card)"/>'
                f'<text class="inside" x="{cx:.1f}" y="{cy + 4:.1f}">{number}</text>'
            )
        rows.append(_text(right + 42, at_list + 4, point.label, "start"))
    depth = max(bottom + 46, top + 20 * len(found) + 10)
    return f'<svg viewBox="0 0 {_WIDTH} {depth}" role="img">{"".join(rows)}</svg>'


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_axis: str, y_axis: str) -> str:
    """Draw a line through each series' points, both axes linear from zero."""
    left, bottom, right, top = 60, 220, _WIDTH - 225, 14
    everything = [point for found in series.values() for point in found]
    most_x, most_y = (max((point[i] for point in everything), default=1) or 1 for i in (0, 1))
    rows = []
    step = _step(most_y)
    for tick in range(int(most_y / step) + 1):
        y = bottom - (bottom - top) * tick * step / most_y
        rows.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        rows.append(_text(left - 6, y + 4, f"{tick * step:g}", "end"))
    for value in sorted({point[0] for point in everything}):
        rows.append(
            _text(left + (right - left) * value / most_x, bottom + 18, f"{value:g}", "middle")
        )
    rows.append(_text((left + right) / 2, bottom + 36, x_axis, "middle"))
    rows.append(_text(left - 50, top - 3, y_axis, "start"))
    taken: list[tuple[float, float]] = []
    for index, (name, found) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        at = [
            (left + (right - left) * x / most_x, bottom - (bottom - top) * y / most_y)
            for x, y in sorted(found)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        rows.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        rows += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at]
        label_y = _free(taken, right, at[-1][1] + 4)
        taken.append((right, label_y))
        rows.append(
            f'<text x="{right + 8}" y="{label_y:.1f}" style="fill:{colour}">{escape(name)}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {bottom + 46}" role="img">{"".join(rows)}</svg>'


def _step(longest: float) -> float:
    """Return a round distance between ticks: three to eight of them."""
    power = 10.0 ** math.floor(math.log10(longest))
    return next(m * power for m in (0.2, 0.5, 1, 2) if longest / (m * power) <= 6)


def _grid(step: float, longest: float, room: float, top: float, depth: float, unit: str) -> str:
    parts = []
    for tick in range(int(longest / step + 1e-9) + 1):
        x = _LABEL + room * tick * step / longest
        parts.append(
            f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + depth}"/>'
        )
        last = tick == int(longest / step + 1e-9)
        label = f"{tick * step:g}" + (f" {unit}" if last else "")
        parts.append(_text(x, top + depth + 16, label, "middle"))
    return "".join(parts)


def _whisker(low: float, high: float, longest: float, room: float, y: float) -> str:
    x1, x2 = _LABEL + room * low / longest, _LABEL + room * high / longest
    return (
        f'<path class="whisker" d="M{x1:.1f} {y - 4}v8M{x1:.1f} {y}H{x2:.1f}M{x2:.1f} {y - 4}v8"/>'
    )


def _legend(colours: Mapping[str, str]) -> str:
    items = (
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the exponents of the powers of ten around the values."""
    known = [math.log10(value) for value in values if value > 0] or [0.0]
    low, high = math.floor(min(known)), math.ceil(max(known))
    return float(low), float(max(high, low + 1))


def _place(value: float, span: tuple[float, float], begin: float, end: float) -> float:
    exponent = math.log10(value) if value > 0 else span[0]
    return begin + (end - begin) * (exponent - span[0]) / (span[1] - span[0])


def _across(most: float, left: float, right: float, bottom: float, top: float) -> list[str]:
    """Draw a linear axis from zero along the bottom."""
    rows, step = [], _step(most)
    for tick in range(int(most / step) + 1):
        x = left + (right - left) * tick * step / most
        rows.append(f'<line class="grid" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{top}"/>')
        rows.append(_text(x, bottom + 18, f"{tick * step:g}", "middle"))
    return rows


def _upwards(
    span: tuple[float, float], left: float, right: float, bottom: float, top: float
) -> list[str]:
    """Draw a logarithmic axis along the left."""
    rows = []
    for exponent in range(int(span[0]), int(span[1]) + 1):
        y = _place(10.0**exponent, span, bottom, top)
        rows.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        rows.append(_text(left - 6, y + 4, f"1e{exponent}", "end"))
    return rows


def _free(taken: Sequence[tuple[float, float]], x: float, y: float) -> float:
    """Move a label down until no other lies on it."""
    while any(abs(y - other_y) < 13 and abs(x - other_x) < 170 for other_x, other_y in taken):
        y += 3
    return y
