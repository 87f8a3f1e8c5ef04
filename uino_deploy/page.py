"""The page kit: titled sections of texts, tables, charts and pictures in one HTML file.

A page is self-contained: pictures are embedded as PNG and charts as SVG, and it runs no script and
contacts no server. Each kind of block has a template of the same name in `templates/`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from uino_deploy.charts import Chart
from uino_deploy.dependencies import require

Grade = Literal["good", "fair", "poor", ""]


@dataclass(frozen=True)
class Verdict:
    """The outcome that a reader must see first, such as PASSED, and the reasons."""

    text: str
    colour: Literal["passed", "failed", "disturbed"]
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """Paragraphs, or a list of points."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]
    listed: bool = False


@dataclass(frozen=True)
class Headline:
    """One large number: its value, its meaning, and a line of fine print."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Headlines:
    """A row of large numbers."""

    kind: ClassVar[str] = "headlines"
    headlines: Sequence[Headline]


@dataclass(frozen=True)
class Table:
    """A table; a column of numbers is aligned right.

    Attributes:
        title: its caption.
        columns: a heading for each column.
        rows: one cell for each column; an empty one is shown as a dash.
        narrow: placed beside others rather than as wide as the page.
        shades: (row, column) -> strength of the cell's colour, 0 to 1.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    narrow: bool = False
    shades: Mapping[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [H, W, 3], with a caption and alternative text."""

    caption: str
    alt: str
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """Pictures that belong together, under a title and graded facts."""

    title: str
    facts: Sequence[tuple[str, Grade]]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Gallery:
    """A titled grid of examples."""

    kind: ClassVar[str] = "gallery"
    title: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Legend:
    """The meanings of painted regions, each with its RGB colour and its pattern of `painted`."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, tuple[int, int, int], str]]


Block = Text | Headlines | Table | Chart | Gallery | Legend


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: Sequence[Block]


def page(
    title: str, lead: Sequence[str], verdicts: Sequence[Verdict], sections: Sequence[Section]
) -> str:
    """Return an HTML page; a section without blocks is left out.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    require("pages", "jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("uino_deploy"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.globals["flush_right"] = _flush_right
    return environment.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        verdicts=verdicts,
        sections=[section for section in sections if section.blocks],
    )


def _data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _flush_right(table: Table | Chart) -> list[bool]:
    """Return, for each column but the first, whether its cells are numbers or dashes."""
    columns = [
        [row[index] for row in table.rows if row[index] not in {"", "-"}]
        for index, _ in enumerate(table.columns)
    ]
    return [
        index > 0 and bool(cells) and all(map(_is_numeric, cells))
        for index, cells in enumerate(columns)
    ]


def _is_numeric(cell: str) -> bool:
    return cell.lstrip("-+\N{MINUS SIGN}")[:1].isdigit()
