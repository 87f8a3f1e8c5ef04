"""Charts as inline SVG: bars, dots, lines, numbered points and a histogram, drawn by matplotlib.

A chart is drawn legibly for the narrowest card; a wider card enlarges it. Its colours are roles of
the page's style sheet, so it follows the reader's colour scheme, and every series also has its own
hatching or marker. The same data gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, ClassVar

from uino_deploy.dependencies import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATES = Path(__file__).parent / "templates"
_HATCHES = ("", "////", "---", "xxx", "\\\\\\\\", "|||", "++", "/-")
_MARKERS = "osD^vPX*"
_WIDTH, _FONT, _ROW, _AXIS, _LINE = 310, 12, 38, 42, 17  # SVG units: pixels in the narrowest card
_LETTERS = 42  # that fit on one line of a legend
_SPOKEN = 10
_TICKS = 6  # that fit below a plane


@dataclass(frozen=True)
class Chart:
    """A drawn chart, with its content in words and as a table.

    Attributes:
        title: its caption.
        svg: an `<svg>` element for an HTML page.
        alt: text for screen readers.
        columns: headings of the numbers drawn.
        rows: the numbers drawn.
        note: a remark for the reader.
        unfolded: the table is open, since the chart cannot be understood without it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    svg: str
    alt: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    unfolded: bool


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: lengths by series, the text at its end, and any whisker."""

    label: str
    parts: Mapping[str, float]
    note: str
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot, in the axes' units, and the series that it belongs to."""

    label: str
    x: float
    y: float
    series: str


def bars(
    title: str, axis: str, series: Sequence[str], rows: Sequence[Bar], note: str = ""
) -> Chart:
    """Draw horizontal bars from zero, the parts of each stacked in the order of the series."""
    used = [name for name in series if any(name in row.parts for row in rows)]
    ends = [max(sum(row.parts.values()), row.spread[1] if row.spread else 0) for row in rows]
    margin = 8 + 0.65 * _FONT * max((len(row.note) for row in rows), default=0)
    bold: dict[str, Any] = {"va": "center", "weight": "bold", "color": _INK}

    def paint(axes: Axes) -> None:
        begin = [0.0] * len(rows)
        for name in used:
            have = [y for y, row in enumerate(rows) if name in row.parts]
            widths, left = [rows[y].parts[name] for y in have], [begin[y] for y in have]
            axes.barh(have, widths, 0.4, left=left, label=name, **_fill(series.index(name)))
            for y, width in zip(have, widths, strict=True):
                begin[y] += width
        for y, (row, end) in enumerate(zip(rows, ends, strict=True)):
            axes.annotate(row.note, (end, y), (4, 0), textcoords="offset points", **bold)
            if row.spread:
                axes.plot(row.spread, (y, y), "|-", color=_INK, linewidth=1.2)
        _label_rows(axes, axis, [row.label for row in rows])
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(0, (max(ends, default=0) or 1) * _WIDTH / (_WIDTH - margin))

    whiskers = any(row.spread for row in rows)
    columns = ["bar", *(f"{name}, {axis}" for name in used), *(["spread"] if whiskers else [])]
    table = [[row.label, *(_number(row.parts.get(name)) for name in used)] for row in rows]
    for row, cells in zip(rows, table, strict=True):
        if whiskers:
            cells.append(" to ".join(map(_number, row.spread)) if row.spread else "-")
    legend = used if len(used) > 1 else []
    return _chart(title, columns, table, paint, _ROW * len(rows) + 8, legend, note=note)


def dots(
    title: str,
    axis: str,
    series: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
) -> Chart:
    """Draw rows of dots, one for each series that has a value there, on a logarithmic axis."""
    used = [i for i, _ in enumerate(series) if any(values[i] for _, values in rows)]

    def paint(axes: Axes) -> None:
        axes.set_xscale("log")
        for y, (_, values) in enumerate(rows):
            known = [value for value in values if value]
            axes.plot(known, [y] * len(known), color=_SOFT, linewidth=0.8)
        for i in used:
            at = [(values[i], y) for y, (_, values) in enumerate(rows) if values[i]]
            axes.plot(*zip(*at, strict=True), linestyle="", label=series[i], **_marker(i))
        axes.set_xlim(_decades([value for _, values in rows for value in values if value]))
        _label_rows(axes, axis, [label for label, _ in rows])

    names = [series[i] for i in used]
    table = [[label, *(_number(values[i]) for i in used)] for label, values in rows]
    return _chart(title, [axis, *names], table, paint, _ROW * len(rows) + 8, names, left=20)


def lines(
    title: str, x_axis: str, y_axis: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> Chart:
    """Draw a line through each series' (x, y) points, both axes linear from zero."""

    def paint(axes: Axes) -> None:
        for i, (name, points) in enumerate(series.items()):
            axes.plot(*zip(*sorted(points), strict=True), label=name, **_marker(i))
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xticks(ticks[:: max(1, -(-len(ticks) // _TICKS))])
        _label_plane(axes, x_axis, y_axis)
        axes.set_ylim(bottom=0)

    table = [[name, f"{x:g}", _number(y)] for name, points in series.items() for x, y in points]
    return _chart(title, ["line", x_axis, y_axis], table, paint, 190, list(series), left=50)


def points(
    title: str, x_axis: str, y_axis: str, series: Sequence[str], found: Sequence[Point]
) -> Chart:
    """Draw numbered points, linear in x, logarithmic in y; overlapping ones share a label."""
    used = [name for name in series if any(point.series == name for point in found)]

    def paint(axes: Axes) -> None:
        axes.set_yscale("log")
        for name in used:
            at = [(point.x, point.y) for point in found if point.series == name]
            look = _marker(series.index(name))
            axes.plot(*zip(*at, strict=True), linestyle="", label=name, **look)
        _label_plane(axes, x_axis, y_axis)
        axes.set_xlim(0, 1.15 * max((point.x for point in found), default=1))
        axes.set_ylim(_decades([point.y for point in found]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
        labels: dict[tuple[int, int], list[str]] = {}
        for number, point in enumerate(found, 1):
            x, y = axes.transData.transform((point.x, point.y))
            labels.setdefault((round(x / _FONT), round(y / _FONT)), []).append(str(number))
        for numbers in labels.values():
            first = found[int(numbers[0]) - 1]
            place = (first.x, first.y)
            axes.annotate(",".join(numbers), place, (6, 3), textcoords="offset points")

    columns = ["number", "point", x_axis, y_axis]
    table = [[str(n), p.label, _number(p.x), f"{p.y:.2e}"] for n, p in enumerate(found, 1)]
    legend = used if len(used) > 1 else []
    return _chart(title, columns, table, paint, 210, legend, left=50, unfolded=True)


def histogram(title: str, axis: str, edges: Sequence[float], counts: Sequence[int]) -> Chart:
    """Draw the number of values between consecutive, equally spaced edges."""

    def paint(axes: Axes) -> None:
        width = 0.9 * (edges[1] - edges[0])
        drawn = axes.bar(edges[:-1], counts, width, align="edge", **_fill(0))
        axes.bar_label(drawn, [str(count) for count in counts], color=_INK, weight="bold")
        axes.set(xticks=edges, yticks=[], xlabel=axis)
        axes.margins(x=0.02, y=0.12)

    ranges = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    table = [[label, str(count)] for label, count in zip(ranges, counts, strict=True)]
    return _chart(title, [axis, "count"], table, paint, 150, [])


def _chart(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    paint: Callable[[Axes], None],
    height: int,
    legend: Sequence[str],
    left: int = 4,
    note: str = "",
    unfolded: bool = False,
) -> Chart:
    """Draw axes of a height with their legend below, and describe them in words.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    require("pages", "matplotlib")
    from matplotlib import style
    from matplotlib.figure import Figure

    more = f"; and {len(rows) - _SPOKEN} more" if len(rows) > _SPOKEN else ""
    spoken = "; ".join(" ".join(row) for row in rows[:_SPOKEN])
    alt = f"Chart of {', '.join(columns)}: {spoken}{more}"
    names = [fill(name, _LETTERS) for name in legend]
    beside = 1 if any(len(name) > 16 for name in legend) else 2
    below = _AXIS + 4 + _LINE * -(-sum(name.count("\n") + 1 for name in names) // beside)
    total, width = below + height + (26 if left > 40 else 10), _WIDTH - left - 24
    # The salt makes identifiers unique, so that a page can hold several charts.
    with style.context(["default", _TEMPLATES / "charts.mplstyle", {"svg.hashsalt": alt}]):
        figure = Figure(figsize=(_WIDTH / 72, total / 72), dpi=72)
        axes = figure.add_axes((left / _WIDTH, below / total, width / _WIDTH, height / total))
        paint(axes)
        if legend:
            handles, labels = axes.get_legend_handles_labels()
            shown = [handles[labels.index(name)] for name in legend]
            place = (-left / width, -_AXIS / height)
            axes.legend(shown, names, loc="upper left", bbox_to_anchor=place, ncols=beside)
        buffer = io.StringIO()
        metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return Chart(title, _for_page(buffer.getvalue()), alt, columns, rows, note, unfolded)


def _for_page(svg: str) -> str:
    """Turn matplotlib's SVG file into an element that takes its colours and font from the page."""
    svg = svg[svg.index("<svg") :]
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r"<clipPath.*?</clipPath>",
        r' clip-path="[^"]*"',
        r' xmlns(:xlink)?="[^"]*"',
        r"font-family: [^;\"]*;? ?",
        r' transform="rotate\(-0 [^"]*"',
        r"<defs>\s*</defs>|<g/>",
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg)
    svg = svg.replace("xlink:href", "href")
    kept = set(re.findall(r'(?<="#)[^"]+|(?<=url\(#)[^)]+', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in kept else "", svg)
    # matplotlib before 3.11 writes one `font:`.
    svg = re.sub(r"font: (?:(bold) )?([\d.]+px)[^;\"]*", r"font-size: \2; font-weight: \1", svg)
    for stand_in, role in _ROLES.items():
        svg = svg.replace(stand_in, f"var(--{role})")
    return re.sub(r"\n\s*", "\n", svg)


# Placeholder colours, which `_for_page` replaces by the page's roles; the charts' style sheet also
# has them.
_INK, _SOFT, _GRID, _CARD = "#010101", "#010102", "#010103", "#010104"
_SERIES = [f"#0102{number:02x}" for number in range(1, len(_MARKERS) + 1)]
_ROLES = {
    **{_INK: "ink", _SOFT: "soft", _GRID: "line", _CARD: "card"},
    **{colour: f"series-{number}" for number, colour in enumerate(_SERIES, 1)},
}


def _fill(index: int) -> dict[str, Any]:
    """Return the style of a series' bars."""
    i = index % len(_SERIES)
    return {"color": _SERIES[i], "edgecolor": _CARD, "hatch": _HATCHES[i], "linewidth": 0.6}


def _marker(index: int) -> dict[str, Any]:
    """Return the style of a series' markers."""
    i = index % len(_SERIES)
    return {"color": _SERIES[i], "marker": _MARKERS[i], "clip_on": False}


def _label_rows(axes: Axes, label: str, names: Sequence[str]) -> None:
    """Label a chart's rows, each above its marks, and its one axis."""
    for y, name in enumerate(names):
        axes.text(0, y - 0.43, name, va="center", transform=axes.get_yaxis_transform())
    axes.set(ylim=(max(len(names), 1) - 0.5, -0.7), yticks=[], xlabel=label)
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _label_plane(axes: Axes, x_label: str, y_label: str) -> None:
    """Label both axes of a plane, the vertical one above it, where it is legible."""
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", x=-0.15, size=_FONT)
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around positive values, at least one decade apart."""
    low = math.floor(math.log10(min(values, default=1)))
    return 10.0**low, 10.0 ** max(math.ceil(math.log10(max(values, default=1))), low + 1)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
