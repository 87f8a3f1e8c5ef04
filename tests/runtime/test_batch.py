"""The images that a batch takes, and the files that it writes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images import check_image, class_colour
from uino_deploy.inputs import InputNotice
from uino_deploy.runtime import Result
from uino_deploy.runtime.batch import draw_labels, find_images, output_names, write_results


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    Path("folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["."], ["a.JPG", "b.png"]),
        (["b.png", "a.JPG"], ["b.png", "a.JPG"]),
        (["sub/**/*"], ["sub/c.webp", "sub/deep/d.tif"]),
        (["*.png", "."], ["b.png", "a.JPG"]),
        (["b.png", "./b.png", "sub/../b.png"], ["b.png"]),
        (["notes.txt"], ["notes.txt"]),
        (["gone.png"], ["gone.png"]),
    ],
)
@pytest.mark.filterwarnings("ignore::uino_deploy.inputs.InputNotice")
def test_files_folders_and_globs(tree, inputs, expected):
    assert [os.path.relpath(path) for path in find_images(inputs)] == expected


@pytest.mark.parametrize("given", ["*.bmp", "folder.png"])
def test_an_input_without_images_is_named(tree, given):
    with pytest.raises(InputError, match="contains no image"):
        find_images(["b.png", given])


def test_a_file_whose_name_looks_like_a_glob(tree):
    Path("x[1].png").write_bytes(b"")
    assert find_images(["x[1].png"]) == [Path("x[1].png")]


def test_what_a_folder_skips_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.jpg", "b.JFIF", "c.avif", "d.jpe", "e.mpo", "f.heic", "g.txt", ".hidden"]
    for name in names:
        Path(name).write_bytes(b"")
    os.mkfifo("h.png")
    words = r"skipped f\.heic \(a format that is not read: convert it\), h\.png \(no regular file\)"
    with pytest.warns(InputNotice, match=words + r", g\.txt \(no image's suffix\)$"):
        found = find_images(["."])
    assert [path.name for path in found] == ["a.jpg", "b.JFIF", "c.avif", "d.jpe", "e.mpo"]


def test_brackets_that_exist_as_written_are_no_pattern(tmp_path):
    for folder in ("trip [2024]", "trip 2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    expected = [tmp_path / "trip [2024]" / "a.png"]
    assert find_images([f"{tmp_path}/trip [2024]/*.png"]) == expected
    assert find_images([f"{tmp_path}/trip [2024]/**/*.png"]) == expected
    assert find_images([f"{tmp_path}/trip [0-9]/*.png"]) == [tmp_path / "trip 2" / "a.png"]


def test_a_name_is_found_in_the_other_unicode_form(tmp_path):
    (tmp_path / "Caf\u0065\u0301.png").write_bytes(b"")
    assert find_images([str(tmp_path / "Caf\u00e9.png")]) == [tmp_path / "Caf\u0065\u0301.png"]


def test_names_that_are_not_utf_8_or_too_long_for_a_number():
    names = output_names([Path(os.fsdecode(b"caf\xe9.png")), Path("x" * 250 + ".png")])
    assert names == ["caf%E9", "x" * 240]
    assert output_names([Path("\u00e9.png"), Path("\u0065\u0301.png")])[1].endswith("-2")


def test_an_image_larger_than_jpeg_loses_only_its_overlay(tmp_path):
    found = result("cup", np.ones((4, 65_504), bool), 1)
    record = write_results(tmp_path, "x", np.zeros((4, 65_504, 3), np.uint8), [found])
    assert (tmp_path / "masks/cup/x.png").is_file()
    assert record["overlay_error"] == "JPEG holds at most 65500 pixels a side"
    assert "overlay" not in record


def test_names_that_meet_are_kept_apart():
    images = [Path(p) for p in ("a/x.jpg", "b/x.jpg", "x-2.png", "c/X.png", "y.png", "x.tif")]
    names = output_names(images)
    assert names == ["x", "x-2", "x-2-2", "X-3", "y", "x-4"]
    assert len({name.casefold() for name in names}) == len(images)


def test_output_names_fit_in_bytes_whatever_is_added():
    assert output_names([Path("漢" * 84 + ".png")] * 2) == ["漢" * 80, "漢" * 80 + "-2"]


def result(name, mask, level):
    logits = np.where(mask[::4, ::4], level, -1).astype(np.float32)
    return Result(name, mask.astype(np.uint8), 0.75, logits)


@pytest.fixture
def masks():
    left, top = np.zeros((2, 32, 48), bool)
    left[:, :24] = True
    top[:16] = True
    return left, top


def test_everything_is_written_at_the_images_size(tmp_path, masks):
    image = np.full((32, 48, 3), 90, np.uint8)
    results = [result("left", masks[0], 1), result("top side", masks[1], 2)]
    record = write_results(tmp_path, "scene", image, results)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "labels/scene.png",
        "masks/left/scene.png",
        "masks/top side/scene.png",
        "overlays/scene.jpg",
    ]
    with Image.open(tmp_path / "masks/left/scene.png") as mask:
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(mask), masks[0] * 255)
    with Image.open(tmp_path / "labels/scene.png") as labels:
        assert labels.mode == "P"
        assert labels.getpalette()[:6] == [0, 0, 0, *class_colour(0)]
        values = np.asarray(labels)
    assert (values[:14] == 2).all()
    assert (values[20:, :20] == 1).all()
    assert (values[20:, 30:] == 0).all()
    with Image.open(tmp_path / "overlays/scene.jpg") as drawn:
        assert drawn.size == (48, 32)
    assert record == {
        "width": 48,
        "height": 32,
        "classes": [
            {
                "name": "left",
                "present": None,
                "presence": None,
                "score": 0.75,
                "area": 0.5,
                "box": [0, 0, 24, 32],
                "mask": "masks/left/scene.png",
            },
            {
                "name": "top side",
                "present": None,
                "presence": None,
                "score": 0.75,
                "area": 0.5,
                "box": [0, 0, 48, 16],
                "mask": "masks/top side/scene.png",
            },
        ],
        "labels": "labels/scene.png",
        "overlay": "overlays/scene.jpg",
    }


def test_one_class_needs_no_labels_and_nothing_found_has_no_box(tmp_path):
    nothing = result("cup", np.zeros((8, 8), bool), 1)
    record = write_results(tmp_path, "x", np.zeros((8, 8, 3), np.uint8), [nothing], draw=False)
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]
    assert record["classes"][0]["box"] is None
    assert "labels" not in record
    assert "overlay" not in record


def test_each_class_is_drawn_in_its_own_colour(masks):
    labels = masks[0].astype(np.uint8)
    labels[:10, 24:] = 2
    image = np.full((32, 48, 3), 90, np.uint8)
    drawn = draw_labels(image, labels)
    for value in (1, 2):
        edge = (drawn == class_colour(value - 1)).all(-1)
        assert edge.any()
        assert not edge[labels != value].any()
    np.testing.assert_array_equal(drawn[labels == 0], image[labels == 0])


def test_a_name_that_is_too_long_is_one_failed_image(tree):
    long = "a" * 300 + ".png"
    assert find_images(["b.png", long]) == [Path("b.png"), Path(long)]
    with pytest.raises(InputError, match=r"cannot be read: .*File name too long"):
        check_image(long)
