"""The page kit: self-contained, escaped, well-formed, and faithful to its blocks."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from uino_deploy import charts, page
from uino_deploy.errors import DependencyError

GREY = np.full((4, 4, 3), 100, np.uint8)
BARS = charts.bars(
    "mIoU",
    "per cent",
    ["a", "b"],
    [charts.Bar("x", {"a": 50}, "50"), charts.Bar("y", {"b": 25}, "25")],
)
SECTIONS = [
    page.Section("Numbers", [page.Headlines([page.Headline("74.6", "mIoU", "note")]), BARS]),
    page.Section(
        "Pictures",
        [
            page.Legend([("missed", (1, 2, 3), "rising")]),
            page.Gallery(
                "Worst",
                [
                    page.Example(
                        "<A> & B",
                        [("IoU 33", "poor"), ("predicted IoU 50", "")],
                        [
                            page.Picture("query", "the query", GREY),
                            page.Picture("x", "x", GREY // 2),
                        ],
                    )
                ],
            ),
        ],
    ),
    page.Section(
        "Tables",
        [page.Table("Values", ["name", "value", "never"], [["a", "1.5", ""], ["b", "-", "-"]])],
    ),
    page.Section("Words", [page.Text(["One paragraph."]), page.Text(["A point."], listed=True)]),
    page.Section("Nothing here", []),
]
PASSED = [page.Verdict("PASSED", "passed")]


def render(verdicts=PASSED, sections=SECTIONS):
    return page.page("A <title>", ["Lead."], verdicts, sections)


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_well_formed_and_needs_nothing_beside_it():
    tags = Tags()
    tags.feed(render())
    assert tags.open == []
    assert not {"script", "link", "iframe"} & set(tags.seen)
    sources = [value for name, value in tags.attributes if name in {"src", "href"}]
    pictures = [source for source in sources if not source.startswith("#")]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not re.search(r"http|@import|url\((?!#)", render())
    identifiers = [value for name, value in tags.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    links = {source[1:] for source in sources if source.startswith("#")}
    assert links <= set(identifiers)


def test_texts_are_escaped():
    text = render()
    assert "A &lt;title&gt;" in text
    assert "&lt;A&gt; &amp; B" in text
    assert "<title>A <title>" not in text


def test_the_same_data_gives_the_same_bytes():
    assert render() == render()


def test_pictures_are_the_ones_given_and_have_words():
    text = render()
    data = re.findall(r"base64,([^\"]+)", text)
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in data]
    assert (pictures[0] == GREY).all()
    assert (pictures[1] == GREY // 2).all()
    assert 'alt="the query"' in text


def test_numbers_are_flush_right_and_no_cell_or_heading_is_empty():
    text = render()
    assert '<td class="right">1.5</td>' in text
    assert '<th scope="col">name</th>' in text
    assert '<th scope="col">never</th>' in text
    assert not re.search(r"<t[dh][^>]*>\s*</t[dh]>", text)


def test_verdicts_are_loud_and_give_their_reasons():
    assert re.search(r'class="verdict passed"><b>PASSED</b>', render())
    failed = render([page.Verdict("FAILED", "failed", ["mIoU is 2 < 3"])])
    assert "verdict passed" not in failed
    assert re.search(r"<b>FAILED</b>\s*<ul><li>mIoU is 2 &lt; 3</li></ul>", failed)


def test_a_section_without_blocks_is_left_out_and_the_others_are_in_the_contents():
    text = render()
    assert "Nothing here" not in text
    for number, heading in enumerate(("Numbers", "Pictures", "Tables", "Words"), 1):
        assert f'<a href="#section-{number}">{heading}</a>' in text


def test_every_colour_of_the_charts_is_in_the_style_sheet():
    text = render()
    for role in charts._ROLES.values():
        assert text.count(f"--{role}:") == 2, role  # light and dark


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, missing):
    monkeypatch.setattr("uino_deploy.dependencies.is_importable", lambda name: name != missing)
    with pytest.raises(DependencyError, match=rf"{missing} is not installed.*\[pages\]"):
        render(sections=[page.Section("x", [charts.histogram("t", "a", [0, 1], [2])])])
