"""The charts: faithful, legible, and the same each time."""

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

from uino_deploy.charts import Bar, Point, bars, dots, histogram, lines, points

BARS = [Bar("ours", {"a": 50.0}, "50", (40.0, 60.0)), Bar("peer <x>", {"b": 25.0}, "25")]


def texts(svg):
    return ["".join(text.itertext()).strip() for text in ET.fromstring(svg).iter("text")]


def widths(svg):
    """The widths of the filled rectangles: bars, then the legend's swatches."""
    found = []
    for path in ET.fromstring(svg).iter("path"):
        if "stroke: var(--card)" in path.get("style", ""):
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", path.get("d"))]
            found.append(max(xs) - min(xs))
    return found


def all_charts():
    yield bars("t", "ms", ["a", "b"], BARS)
    yield dots("t", "MB", ["x", "y"], [("one", [0.01, 9e4]), ("two", [None, 10.0])])
    yield lines("t", "classes", "ms", {"one": [(1, 2.0), (10, 5.0)], "two": [(1, 3.0)]})
    yield points("t", "ms", "error", ["a"], [Point("one", 1, 1e-5, "a")])
    yield histogram("t", "IoU", [0, 10, 20], [1, 3])


def test_bars_are_as_long_as_their_values_and_named():
    chart = bars("t", "ms", ["a", "b"], BARS)
    first, second = widths(chart.svg)[:2]
    assert first == pytest.approx(2 * second, rel=1e-4)
    assert {"ours", "peer <x>", "50", "25", "ms", "a", "b"} <= set(texts(chart.svg))
    assert chart.columns == ["bar", "a, ms", "b, ms", "spread"]
    assert chart.rows == [["ours", "50", "-", "40 to 60"], ["peer <x>", "-", "25", "-"]]
    assert "ours 50" in chart.alt


def test_series_differ_without_colour():
    assert "<pattern" in bars("t", "ms", ["a", "b"], BARS).svg
    paths = {
        path.get("d")
        for path in ET.fromstring(lines("t", "x", "y", {"a": [(1, 1)], "b": [(1, 2)]}).svg).iter(
            "path"
        )
        if path.get("id")
    }
    assert len(paths) == 2


def test_a_histogram_shows_its_counts():
    chart = histogram("t", "IoU", [0, 10, 20], [1, 3])
    assert [text for text in texts(chart.svg) if text in {"1", "3"}] == ["1", "3"]
    assert chart.rows == [["0 to 10", "1"], ["10 to 20", "3"]]


def test_dots_leave_out_what_is_not_known():
    chart = dots("t", "MB", ["x", "never"], [("one", [1.0, None]), ("two", [None, None])])
    assert chart.columns == ["MB", "x"]
    assert chart.rows == [["one", "1"], ["two", "-"]]
    assert "never" not in chart.svg


def test_equal_points_share_a_label_and_are_listed_apart():
    same = [Point(f"entry {i}", 10.0, 1e-5, "a") for i in range(5)]
    chart = points("t", "ms", "error", ["a"], same)
    assert "1,2,3,4,5" in texts(chart.svg)
    assert [row[:2] for row in chart.rows] == [[str(i + 1), f"entry {i}"] for i in range(5)]
    assert chart.unfolded


@pytest.mark.parametrize("value", [1e-6, 0.03, 1, 7, 99.9, 12345])
def test_a_scale_has_few_round_ticks(value):
    chart = bars("t", "unit", ["a"], [Bar("x", {"a": value}, "!")])
    ticks = [float(text) for text in texts(chart.svg) if re.fullmatch(r"[\d.e+-]+", text)]
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0


def test_text_is_legible_on_a_telephone_and_stays_inside():
    for chart in all_charts():
        width, height = map(
            float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart.svg).groups()
        )
        assert width == 310  # the inside of a card of a page 360 px wide
        assert {float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart.svg)} == {12}
        for text in ET.fromstring(chart.svg).iter("text"):
            half = 3.5 * len(text.text or "") if "middle" in text.get("style") else 0
            assert half <= float(text.get("x")) <= width - half, text.text
            assert 8 <= float(text.get("y")) <= height


def test_logarithmic_axes_within_one_decade_have_plain_labels():
    near = [Point("one", 14, 1.2e-6, "a"), Point("two", 25, 5.1e-7, "b")]
    for chart in (
        points("t", "ms", "error", ["a", "b"], near),
        dots("t", "MB", ["x"], [("one", [2.0]), ("two", [6.0])]),
    ):
        assert not [text for text in texts(chart.svg) if "$" in text or "math" in text]
        assert {"1e-07", "1e-06", "1e-05"} <= set(texts(chart.svg)) or {"1", "10"} <= set(
            texts(chart.svg)
        )


def test_the_same_data_gives_the_same_bytes_and_no_trace_of_the_machine():
    assert list(all_charts()) == list(all_charts())
    for chart in all_charts():
        assert not re.search(r"metadata|http|font-family|#01|nan", chart.svg)


def test_matplotlibs_settings_and_backend_are_left_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    list(all_charts())
    assert dict(matplotlib.rcParams) == before
    # A user's own settings do not show.
    with matplotlib.rc_context({"font.size": 40, "axes.grid": False}):
        assert bars("t", "ms", ["a", "b"], BARS) == bars("t", "ms", ["a", "b"], BARS)
        assert "40" not in re.findall(r"font-size: (\d+)", bars("t", "ms", ["a", "b"], BARS).svg)
