"""The images that a batch takes, and the files that it writes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uino_deploy.errors import InputError
from uino_deploy.images import class_colour
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
def test_files_folders_and_globs(tree, inputs, expected):
    assert [os.path.relpath(path) for path in find_images(inputs)] == expected


@pytest.mark.parametrize("given", ["*.bmp", "folder.png"])
def test_an_input_without_images_is_named(tree, given):
    with pytest.raises(InputError, match="contains no image"):
        find_images(["b.png", given])


def test_a_file_whose_name_looks_like_a_glob(tree):
    Path("x[1].png").write_bytes(b"")
    assert find_images(["x[1].png"]) == [Path("x[1].png")]


def test_names_that_meet_are_kept_apart():
    images = [Path(p) for p in ("a/x.jpg", "b/x.jpg", "x-2.png", "c/X.png", "y.png", "x.tif")]
    names = output_names(images)
    assert names == ["x", "x-2", "x-2-2", "X-3", "y", "x-4"]
    assert len({name.casefold() for name in names}) == len(images)


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
                "score": 0.75,
                "area": 0.5,
                "box": [0, 0, 24, 32],
                "mask": "masks/left/scene.png",
            },
            {
                "name": "top side",
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
