"""Polygons of COCO files, rasterised."""

import json
import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images import (
    polygons_from_coco,
)
from uino_deploy.inputs import InputNotice

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


SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
SQUARE_RUNS = [105, *[10, 10] * 9, 10, 600 - 105 - 190]


def document():
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "bottle"}, {"id": 4, "name": "cup"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "segmentation": SQUARE}],
    }


def rewritten(change):
    content = document()
    change(content)
    return content


def neighbour(**fields):
    return lambda content: content["annotations"].append({"id": 8, "image_id": 1, **fields})


def on_first(part, **fields):
    return lambda content: content[part][0].update(fields)


def as_text(content):
    content["images"][0]["id"] = "1"
    content["categories"][0]["id"] = 3.0


@pytest.mark.parametrize(
    "change",
    [
        neighbour(category_id=4, bbox=[0, 0, 5, 5]),
        neighbour(category_id=3, bbox=[0, 0, 5, 5]),
        neighbour(category_id=3, segmentation=[[1, 1, 5, 5]]),
        neighbour(category_id=None, segmentation="?"),
        neighbour(category_id=3, segmentation=[[0, 0, 9, 0, 9, 9]], iscrowd=True),
        on_first("annotations", iscrowd=False),
        on_first("categories", supercategory=None),
        on_first("annotations", iscrowd=None),
        on_first("annotations", id="seven", image_id="1", area=float("nan")),
        on_first("annotations", segmentation=SQUARE[0]),
        on_first("annotations", segmentation={"size": [20, 30], "counts": SQUARE_RUNS}),
        on_first("images", height=20.0, width=30.0),
        on_first("images", file_name="train\\\\a.jpg"),
        as_text,
    ],
)
def test_fields_that_nobody_needs_do_not_matter(tmp_path, change):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(rewritten(change)))
    mask = polygons_from_coco(path, "a.jpg", "bottle")
    assert mask.shape == (20, 30)
    assert mask.sum() == 100
    assert mask[5:15, 5:15].all()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "c.json").write_bytes(json.dumps(document()).encode(encoding))
    assert polygons_from_coco(tmp_path / "c.json", 1, "bottle").sum() == 100


def test_compressed_run_lengths_are_cocos(tmp_path):
    tools = pytest.importorskip("pycocotools.mask")
    mask = (np.random.default_rng(0).random((20, 30)) < 0.3).astype(np.uint8)
    packed = tools.encode(np.asfortranarray(mask))
    packed["counts"] = packed["counts"].decode()
    path = write_coco(tmp_path / "c.json", packed)
    np.testing.assert_array_equal(polygons_from_coco(path, 1, "bottle"), mask)


def test_one_base_name_in_two_folders(tmp_path):
    content = document()
    content["images"] = [
        {"id": n, "file_name": f"day{n}/a.png", "height": 20, "width": 30} for n in (1, 2)
    ]
    (tmp_path / "c.json").write_text(json.dumps(content))
    for n in (1, 2):
        (tmp_path / f"day{n}").mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / f"day{n}" / "a.png")
    mask = polygons_from_coco(tmp_path / "c.json", tmp_path / "day1" / "a.png", "bottle")
    assert mask.sum() == 100
    with pytest.raises(InputError, match=r"day2/a\.png' has no polygons"):
        polygons_from_coco(tmp_path / "c.json", tmp_path / "day2" / "a.png", "bottle")
    with pytest.raises(InputError, match=r"'a\.png' 2 times, not once"):
        polygons_from_coco(tmp_path / "c.json", "a.png", "bottle")


def test_another_size_than_the_images_is_refused_before_it_is_allocated(tmp_path):
    content = document()
    content["images"][0] |= {"height": 60_000, "width": 60_000}
    content["annotations"][0]["segmentation"] = 200 * [[0, 0, 60_000, 0, 60_000, 60_000]]
    (tmp_path / "c.json").write_text(json.dumps(content))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    start = time.perf_counter()
    with pytest.raises(InputError, match="60000 x 60000 pixels; it has 30 x 20"):
        polygons_from_coco(tmp_path / "c.json", tmp_path / "a.jpg", "bottle")
    with pytest.raises(InputError, match="has more than 178956970 pixels"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")
    assert time.perf_counter() - start < 5


def test_sizes_that_are_left_out_are_the_images(tmp_path):
    content = document()
    content["images"] = [{"id": 1, "file_name": "a.jpg"}]
    (tmp_path / "c.json").write_text(json.dumps(content))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    assert polygons_from_coco(tmp_path / "c.json", tmp_path / "a.jpg", "bottle").shape == (20, 30)
    with pytest.raises(InputError, match="has no size"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")


def test_polygons_of_the_stored_pixels_are_turned_with_the_image(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(document()))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(InputNotice, match="turned too"):
        mask = polygons_from_coco(tmp_path / "c.json", tmp_path / "a.jpg", "bottle")
    assert mask.shape == (30, 20)
    assert mask[5:15, 5:15].all()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[1, 1, 9, 1, 9, 1e9]], "a corner at 1e"),
        ([[1e308, 39.5, -1e308, 1e18, 0, 50.5]], "a corner at 1e"),
        ([[1, 1, 9, 1, 9, "9"]], "with '9' in it"),
        ([[1, 1, 9, 1, 9, True]], "with True in it"),
        ([[1, 1, 9, 1, 9]], "polygon of 5 numbers"),
        (100_000 * [[0, 0, 30, 0, 30, 20]], "longer than 4000000 pixels"),
        ({"size": [20, 30], "counts": ";"}, "run-lengths of 11 pixels, the image has 600"),
        ({"size": [20, 30], "counts": [700, -100]}, "below zero"),
        ({"size": [20, 30], "counts": [2**70]}, r"annotation 7 \[0\] has"),
        ({"size": [20, 30], "counts": [599.0, 1]}, "no integers"),
        ({"size": [20, 30], "counts": "\u00ff"}, "wrong character"),
        ({"size": [20, 30], "counts": "P" * 99}, "wrong character"),
        ({"size": [30, 20], "counts": [600]}, "run-lengths for size"),
        ({"size": 7}, "run-lengths for size"),
        (7, "it is int"),
    ],
)
def test_a_damaged_segmentation_is_refused_with_the_reason(tmp_path, segmentation, words):
    path = write_coco(tmp_path / "c.json", segmentation)
    with pytest.raises(InputError, match=words):
        polygons_from_coco(path, 1, "bottle")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"images": ' + b"[" * 100_000,
        b'{"images": [], "categories": [{"id": 1, "name": "\xff"}], "annotations": []}',
        b'{"images": [{"id": 1, "file_name": "a", "height": 1e999}], "categories": []}',
        b'{"images": [' + b"9" * 6000 + b'], "categories": [], "annotations": []}',
        b"\xff\xfe\x00",
    ],
)
def test_hostile_bytes_are_no_coco_file(tmp_path, data):
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(InputError, match="is not a COCO annotation file"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")


def test_annotations_in_a_pipe_or_a_sparse_file(tmp_path):
    os.mkfifo(tmp_path / "f.json")
    with pytest.raises(InputError, match="it is a named pipe"):
        polygons_from_coco(tmp_path / "f.json", "a.jpg", "bottle")
    with open(tmp_path / "c.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="the limit is"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")


@pytest.mark.parametrize(
    "other",
    [
        {"id": 2, "file_name": "b.jpg", "height": 0, "width": -1},
        {"id": 2, "file_name": "b.jpg", "height": "?", "width": []},
        {"id": 2, "file_name": None},
        {"file_name": 17, "height": 10**400},
        {},
    ],
)
def test_another_image_may_lack_what_nobody_needs(tmp_path, other):
    path = write_coco(tmp_path / "c.json", [[5, 5, 15, 5, 15, 15, 5, 15]])
    content = json.loads(path.read_text())
    content["images"].insert(0, other)
    content["categories"] += [{"id": 9}, {"id": {"$oid": "5f"}, "name": 17}]
    path.write_text(json.dumps(content))
    assert polygons_from_coco(path, "a.jpg", "bottle").sum() == 100


def test_an_images_own_size_that_cannot_be_is_refused(tmp_path):
    path = write_coco(tmp_path / "c.json", [[5, 5, 15, 5, 15, 15, 5, 15]])
    path.write_text(path.read_text().replace('"height": 20', '"height": 0'))
    with pytest.raises(InputError, match="has no size of image"):
        polygons_from_coco(path, "a.jpg", "bottle")


@pytest.mark.parametrize(
    "segmentation",
    [[[0, 0, 13000, 0, 13000, 13000, 0, 13000]], {"size": [13000, 13000], "counts": [0, 13000**2]}],
)
def test_hours_of_drawing_are_refused_before_any(tmp_path, segmentation):
    path = write_coco(tmp_path / "c.json", segmentation)
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": 13000, "width": 13000}
    content["annotations"] *= 60
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has segmentations over 1\.0e\+10 pixels, the limit is"):
        polygons_from_coco(path, "a.jpg", "bottle")


def test_a_polygon_is_drawn_only_where_it_lies(tmp_path):
    for x in (-9, 0, 12, 28, 40):
        path = write_coco(tmp_path / "c.json", [[x, 2, x + 4, 2, x + 4, 6, x, 6]])
        mask = polygons_from_coco(path, "a.jpg", "bottle")
        expected = np.zeros((20, 30), np.uint8)
        expected[2:6, max(0, x) : max(0, x + 4)] = 1
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
@pytest.mark.parametrize("nan", [False, True])
def test_entries_that_are_no_objects_are_skipped_and_named(tmp_path, part, nan):
    content = document()
    content[part] = [None, content[part][0], "cup", 17]
    if nan:  # JSON does not know it: another way through the reader
        content["annotations"][-1 if part != "annotations" else 1]["area"] = float("nan")
    (tmp_path / "c.json").write_text(json.dumps(content))
    seen = rf"""c.json: skipped 3 of 4 {part} .*\[0\] is null, \[2\] is "cup", \[3\] is 17"""
    with pytest.warns(InputNotice, match=seen):
        assert polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle").sum() == 100


def test_entries_of_which_none_is_an_object_are_no_coco_file(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({**document(), "annotations": [None, "x"]}))
    with pytest.raises(InputError, match=r"not a COCO.*none of its annotations is an object"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")


@pytest.mark.parametrize("bad", [7, "polygon", [[1, 1, 9, 1, 9, None]], {"size": [1, 1]}])
def test_a_damaged_segmentation_beside_a_good_one_is_skipped_and_named(tmp_path, bad):
    content = document()
    content["annotations"].append({"id": 9, "image_id": 1, "category_id": 3, "segmentation": bad})
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.warns(InputNotice, match=r"skipped 1 of 2 annotations of a mask: annotation 9 \[1"):
        assert polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle").sum() == 100


def test_entries_that_stand_twice_count_once(tmp_path):
    content = document()
    for part in ("images", "categories", "annotations"):
        content[part] += content[part]
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle").sum() == 100


def test_an_id_of_two_images_is_refused(tmp_path):
    content = document()
    content["images"].append({**content["images"][0], "file_name": "b.jpg"})
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"gives the id 1 to a\.jpg and to b\.jpg"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "bottle")


def test_the_categories_that_there_are_are_named(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(document()))
    with pytest.raises(InputError, match="category 'Bottle' 0 times, not once; it has bottle, cup"):
        polygons_from_coco(tmp_path / "c.json", "a.jpg", "Bottle")
