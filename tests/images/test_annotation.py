"""Polygons of COCO files, rasterised."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uino_deploy.errors import InputError
from uino_deploy.images import (
    polygons_from_coco,
)

# A loaded machine must not fail a test for being slow.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write_coco(path, segmentation, **changes):
    annotation = {"id": 7, "image_id": 1, "category_id": 3, "segmentation": segmentation}
    content = {
        "info": {"ignored": True},
        "images": [{"id": 1, "file_name": "train/a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "bottle"}, {"id": 4, "name": "cup"}],
        "annotations": [annotation | changes],
    }
    path.write_text(json.dumps(content))
    return path


def test_a_polygon_fills_the_pixels_whose_centres_it_holds(tmp_path):
    path = write_coco(tmp_path / "c.json", [[5, 5, 15, 5, 15, 15, 5, 15]])
    for image in ("a.jpg", "train/a.jpg", 1):
        mask = polygons_from_coco(path, image, "bottle")
        assert mask.shape == (20, 30)
        assert mask.sum() == 100
        assert mask[5:15, 5:15].all()


def test_polygons_are_joined_and_cut_at_the_border(tmp_path):
    square = [2, 2, 6, 2, 6, 6, 2, 6]
    path = write_coco(tmp_path / "c.json", [square, square, [25, -5, 99, -5, 99, 5, 25, 5]])
    mask = polygons_from_coco(path, "a.jpg", "bottle")
    assert mask.sum() == 16 + 25
    assert mask[:5, 25:].all()


@unhurried
@given(
    points=st.lists(
        st.tuples(st.floats(-5, 35, width=32), st.floats(-5, 25, width=32)), min_size=3, max_size=8
    )
)
def test_a_polygon_agrees_with_a_point_by_point_even_odd_test(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("coco") / "c.json"
    write_coco(path, [[value for point in points for value in point]])
    mask = polygons_from_coco(path, 1, "bottle")
    for row, column in ((0, 0), (7, 3), (10, 15), (19, 29), (4, 22)):
        x, y = column + 0.5, row + 0.5
        crossings, near = 0, False
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                near |= abs(at - x) < 1e-6
                crossings += at <= x
        assert near or mask[row, column] == crossings % 2


@pytest.mark.parametrize(
    ("segmentation", "changes", "image", "category", "words"),
    [
        ([[1, 1, 9, 1, 9, 9]], {}, "b.jpg", "bottle", "image 'b.jpg' 0 times"),
        ([[1, 1, 9, 1, 9, 9]], {}, "a.jpg", "glass", "category 'glass' 0 times"),
        ([[1, 1, 9, 1, 9, 9]], {}, "a.jpg", "cup", "no polygons of category 'cup'"),
        ([[1, 1, 9, 1, 9, 9]], {"iscrowd": 1}, "a.jpg", "bottle", "no polygons"),
        ([], {}, "a.jpg", "bottle", "no polygons"),
        ([[1, 1, 9, 1]], {}, "a.jpg", "bottle", "polygon of 4 numbers"),
        ({"counts": "abc", "size": [20, 30]}, {}, "a.jpg", "bottle", "run-length"),
    ],
)
def test_coco_files_that_do_not_answer(tmp_path, segmentation, changes, image, category, words):
    path = write_coco(tmp_path / "c.json", segmentation, **changes)
    with pytest.raises(InputError, match=words):
        polygons_from_coco(path, image, category)


@pytest.mark.parametrize("text", ["", "[]", '{"images": 1}', '{"images": []}'])
def test_what_is_no_coco_file(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="not a COCO"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")
    with pytest.raises(InputError, match="cannot be read"):
        polygons_from_coco(tmp_path / "none.json", "a.jpg", "bottle")
