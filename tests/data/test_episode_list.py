"""Lists of episodes: the same from a seed, and from a file."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.miniatures import make_folder, make_voc
from uino_deploy.data import draw_episode, load_pool
from uino_deploy.data.coco import Coco
from uino_deploy.data.dataset import Dataset
from uino_deploy.data.episode_list import (
    draw_list,
    fingerprint,
    read_list,
    write_list,
)
from uino_deploy.data.folder import Folder
from uino_deploy.data.fss1000 import Fss1000
from uino_deploy.data.open import open_dataset
from uino_deploy.data.pascal import Pascal
from uino_deploy.data.procedural import Procedural
from uino_deploy.errors import InputError


@pytest.fixture
def opened(voc, coco, fss, folder) -> list[Dataset]:
    return [
        Pascal(voc, 0),
        Coco(coco, 0),
        Fss1000(fss),
        Folder(folder),
        Procedural("demo", "held-out"),
    ]


def test_an_episode_has_distinct_images_of_its_class(opened):
    for dataset in opened:
        drawn = draw_list(dataset, 2 * len(dataset.classes), 2, seed=5)
        assert drawn == draw_list(dataset, 2 * len(dataset.classes), 2, seed=5)
        assert drawn != draw_list(dataset, 2 * len(dataset.classes), 2, seed=6)
        labels = [each.label for each in drawn]
        assert sorted(labels) == sorted(2 * list(range(len(dataset.classes))))
        for each in drawn[:10]:
            assert len({*each.support, each.query}) == 3
            for key in (*each.support, each.query):
                mask = dataset.mask(key, each.label)
                assert (mask == 1).any()
                assert (mask != 1).any()


def test_a_seeds_list_never_changes(tmp_path):
    # Results that were published with a seed must stay comparable: a new numpy or a rewritten loop
    # may not draw other episodes.
    dataset = Folder(make_folder(tmp_path, 6, ("box", "mug")))
    numbers = [
        (each.label, *(int(key[-7:-4]) for key in (*each.support, each.query)))
        for each in draw_list(dataset, 4, 2, seed=0)
    ]
    assert numbers == [(0, 3, 1, 5), (1, 2, 0, 5), (0, 5, 1, 3), (1, 5, 1, 4)]


def test_a_longer_list_begins_with_the_shorter_one(folder):
    dataset = Folder(folder)
    assert draw_list(dataset, 9, 1, 0)[:4] == draw_list(dataset, 4, 1, 0)


def test_the_procedural_list_is_the_demos_own_episodes():
    dataset = Procedural("digits", "digits")
    for index, listed in enumerate(draw_list(dataset, 12, 2, seed=2)):
        episode = draw_episode(load_pool("digits"), 2, index, 2)
        assert listed.label == episode.label
        keys, scenes = (*listed.support, listed.query), (*episode.support, episode.query)
        for key, scene in zip(keys, scenes, strict=True):
            np.testing.assert_array_equal(dataset.image(key), scene.image)
            np.testing.assert_array_equal(dataset.mask(key, listed.label), scene.mask)
    key = dataset.images(3)[1]
    assert dataset.mask(key, 3).any()
    with pytest.raises(InputError, match="another class"):
        dataset.mask(key, 4)
    with pytest.raises(InputError, match="not a scene"):
        dataset.image("3/x")


def test_supports_without_ground_are_passed_over(tmp_path):
    root = make_folder(tmp_path, 4)
    for index in (0, 2):
        Image.new("L", (60, 40), 255).save(root / f"masks/{index:03d}.png")
    dataset = Folder(root)
    for each in draw_list(dataset, 30, 1, 0):
        assert each.support[0] in {"images/001.jpg", "images/003.jpg"}
    with pytest.raises(InputError, match="too few images for 3 shots"):
        draw_list(dataset, 1, 3, 0)


def test_classes_without_images_are_left_out(tmp_path):
    root = make_voc(tmp_path, per_class=2)
    listing = root / "VOC2012/ImageSets/Segmentation/val.txt"
    kept = [name for name in listing.read_text().split() if "_val_02_" in name]
    listing.write_text("\n".join(kept))
    dataset = Pascal(root, 0)
    assert dataset.shown_labels() == [1, 2]  # the class, and its neighbour in the same images
    assert {each.label for each in draw_list(dataset, 8, 1, 0)} == {1, 2}
    listing.write_text("")
    with pytest.raises(InputError, match="no image of any of its classes"):
        draw_list(Pascal(root, 0), 1, 1, 0)


def test_a_file_gives_the_list_back_and_reads_as_plain_json(opened, tmp_path):
    for number, dataset in enumerate(opened):
        drawn = draw_list(dataset, 6, 2, seed=1)
        path = tmp_path / f"{number}.jsonl"
        write_list(path, dataset, None, 2, 1, drawn)
        header, read = read_list(path, dataset)
        assert read == drawn
        assert (header.shots, header.seed) == (2, 1)
        assert fingerprint(dataset, read) == fingerprint(dataset, drawn)
        first, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        assert first["dataset"] == dataset.name
        assert rest[0]["class"] == dataset.classes[drawn[0].label]
        assert rest[0]["support"] == list(drawn[0].support)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "{}", "not an episode list"),
        (0, '{"format":"x","version":1,"dataset":"folder","fold":null,"shots":1,"seed":0}',
         "format"),
        (0, '{"format":"uino-episodes","version":1,"dataset":"coco","fold":0,"shots":1,"seed":0}',
         "for data set 'coco', not 'folder'"),
        (1, '{"class":"zebra","support":["a"],"query":"b"}', "line 2: .* no class 'zebra'"),
        (1, '{"class":"NAME","support":[],"query":"b"}', "line 2: the number of support images"),
        (1, "garbage", "not an episode list"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(folder, tmp_path, line, text, message):
    dataset = Folder(folder)
    path = tmp_path / "list.jsonl"
    write_list(path, dataset, None, 1, 0, draw_list(dataset, 2, 1, 0))
    lines = path.read_text().splitlines()
    lines[line] = text.replace("NAME", dataset.classes[0])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_list(path, dataset)


def test_no_file_and_no_episode_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path / "none", Folder(folder))
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="lists no episode"):
        read_list(tmp_path / "empty", Folder(folder))


def test_open_names_what_is_missing_or_superfluous(tmp_path, voc):
    assert open_dataset("pascal", voc, 2).name == "pascal"
    assert len(open_dataset("demo").classes) == 80
    assert len(open_dataset("demo", split="train").classes) == 240
    for arguments, message in [
        (("demo", tmp_path), "comes with the package"),
        (("digits", None, 1), "has no folds"),
        (("fss1000", tmp_path, 1), "has no folds"),
        (("coco",), "needs its folder"),
        (("digits", None, None, "train"), "only for evaluation"),
    ]:
        with pytest.raises(InputError, match=message):
            open_dataset(*arguments)


def test_a_byte_order_mark_and_blank_lines_do_not_matter(folder, tmp_path):
    path, dataset = tmp_path / "list.jsonl", Folder(folder)
    write_list(path, dataset, None, 1, 0, draw_list(dataset, 2, 1, 0))
    expected = read_list(path, dataset)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read_list(path, dataset) == expected


@pytest.mark.parametrize(
    "data", [b'{"format": "\xff"}\n{}', b"[" * 100_000 + b"\n{}", b"\xff\xfe\x00"]
)
def test_hostile_bytes_are_no_list(folder, tmp_path, data):
    (tmp_path / "list.jsonl").write_bytes(data)
    with pytest.raises(InputError, match="is not an episode list"):
        read_list(tmp_path / "list.jsonl", Folder(folder))


def test_a_pipe_is_no_list(folder, tmp_path):
    os.mkfifo(tmp_path / "list.jsonl")
    with pytest.raises(InputError, match="it is a named pipe"):
        read_list(tmp_path / "list.jsonl", Folder(folder))


def test_absent_targets_survive_the_file_and_leave_the_other_episodes_as_they_are(tmp_path):
    dataset = Procedural("digits", "digits")
    always, sometimes = (draw_list(dataset, 12, 1, 5, share) for share in (0.0, 0.5))
    lacking = [each.absent for each in sometimes]
    assert 2 < sum(lacking) < 10
    for one, other in zip(always, sometimes, strict=True):
        assert (one == other) != other.absent
        assert one.support == other.support
    write_list(tmp_path / "list", dataset, None, 1, 5, sometimes)
    assert read_list(tmp_path / "list", dataset)[1] == sometimes
    write_list(tmp_path / "plain", dataset, None, 1, 5, always)
    assert b"absent" not in (tmp_path / "plain").read_bytes()
    for each in sometimes:
        shown = dataset._drawn(each.query).query.labels
        assert (each.label in shown) != each.absent


def test_an_image_that_the_data_lacks_is_named_with_its_line(tmp_path):
    for dataset in (Folder(make_folder(tmp_path / "mug", 4)), Pascal(make_voc(tmp_path), 2)):
        path = tmp_path / f"{dataset.name}.jsonl"
        write_list(path, dataset, None, 1, 0, draw_list(dataset, 3, 1, 0))
        assert len(read_list(path, dataset)[1]) == 3
        lines = path.read_text().splitlines()
        lines[2] = re.sub(r'"query":"[^"]*"', '"query":"images/gone.jpg"', lines[2])
        path.write_text("\n".join(lines))
        with pytest.raises(InputError, match=r"line 3: the data set has no image images/gone\.jpg"):
            read_list(path, dataset)


def test_scenes_of_any_seed_and_of_the_right_class_are_held():
    dataset = Procedural("digits", "digits")
    listed = dataset.episode(seed=5, index=7, shots=1)
    assert dataset.holds(listed.query, listed.label)
    assert not dataset.holds(listed.query, (listed.label + 1) % 10)
    assert not dataset.holds("5/7", listed.label)


def test_a_comment_is_named_with_its_line(tmp_path):
    dataset = Folder(make_folder(tmp_path / "mug", 4))
    write_list(tmp_path / "l.jsonl", dataset, None, 1, 0, draw_list(dataset, 2, 1, 0))
    (tmp_path / "l.jsonl").write_text((tmp_path / "l.jsonl").read_text() + "\n# the end\n")
    with pytest.raises(InputError, match=r"l\.jsonl, line 5, is not an episode list's"):
        read_list(tmp_path / "l.jsonl", dataset)
