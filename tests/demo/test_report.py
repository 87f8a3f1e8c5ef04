"""The report page: self-contained, escaped, and its pictures say what they claim."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from uino_deploy.demo.report import (
    FALSE_COLOUR,
    HIT_COLOUR,
    MISSED_COLOUR,
    Bar,
    Example,
    Headline,
    Report,
    Table,
    paint,
    paint_prediction,
    render,
)

GREY = np.full((4, 4, 3), 100, np.uint8)
TRUTH = np.zeros((4, 4), np.uint8)
TRUTH[:2] = 1
FOUND = np.zeros((4, 4), np.uint8)
FOUND[1:3] = 1

EXAMPLE = Example("<A> & B", GREY, TRUTH, GREY, TRUTH, FOUND, iou=1 / 3, score=0.5)
REPORT = Report(
    title="A <title>",
    lead="Lead.",
    failures=[],
    thresholds=["mIoU is at least 3"],
    headlines=[Headline("74.6", "mIoU", "note")],
    bars=[Bar("bundle", 50.0, accent=True), Bar("baseline", 25.0)],
    ious=[0.05, 0.95, 0.97, 1.0],
    sections=[("The worst", [EXAMPLE])],
    tables=[Table("Numbers", ("name", "value"), [("a", "1.5"), ("b", "-")])],
    method=["One paragraph."],
)


def near(colour: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    """Return whether a painted pixel is the colour over a grey of 100."""
    return bool(np.abs(colour - (0.3 * 100 + 0.7 * np.array(wanted))).max() <= 1)


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "img", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag


def test_paint_marks_and_dims():
    painted = paint(GREY, [(TRUTH != 0, (255, 0, 0))])
    assert near(painted[0, 0], (255, 0, 0))
    assert painted[3, 3].max() < 50
    assert (GREY == 100).all()


def test_a_prediction_is_painted_right_wrong_and_missed():
    painted = paint_prediction(GREY, TRUTH, FOUND)
    assert near(painted[1, 0], HIT_COLOUR)
    assert near(painted[2, 0], FALSE_COLOUR)
    assert near(painted[0, 0], MISSED_COLOUR)


def test_page_is_well_formed_and_needs_nothing_beside_it():
    page = render(REPORT)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "iframe"} & set(tags.seen)
    sources = [value for name, value in tags.attributes if name in {"src", "href"}]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page.replace("http-equiv", "")


def test_texts_are_escaped():
    page = render(REPORT)
    assert "A &lt;title&gt;" in page
    assert "&lt;A&gt; &amp; B" in page
    assert "<title>A <title>" not in page


def test_pictures_are_the_examples():
    data = re.findall(r"base64,([^\"]+)", render(REPORT))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in data]
    assert (pictures[1] == GREY).all()
    assert (pictures[3] == paint_prediction(GREY, TRUTH, FOUND)).all()


def test_charts_show_the_numbers():
    page = render(REPORT)
    widths = [
        float(w) for w in re.findall(r'class="bar[^"]*" x="190" y="\d+" width="([\d.]+)"', page)
    ]
    assert widths == [150.0, 75.0]
    counts = [int(n) for n in re.findall(r'text-anchor="middle">(\d+)</text>', page)]
    assert counts[:10] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert "<td class=right>1.5</td>" in page


def test_verdict():
    assert '<div class="verdict passed">PASSED</div>' in render(REPORT)
    failed = render(replace(REPORT, failures=["mIoU is 2 < 3"]))
    assert "verdict passed" not in failed
    assert "FAILED<ul><li>mIoU is 2 &lt; 3</li></ul>" in failed
