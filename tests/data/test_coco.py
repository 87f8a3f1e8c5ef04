"""COCO-20i on a miniature COCO 2014, against COCO's own tools."""

import json

import numpy as np
import pytest

from tests.data.miniatures import make_coco
from uino_deploy.data.coco import Coco
from uino_deploy.errors import DependencyError, InputError
from uino_deploy.inputs import InputNotice

pycoco = pytest.importorskip("pycocotools.coco")


def test_a_fold_holds_out_every_fourth_class(coco):
    for fold in range(4):
        held_out = Coco(coco, fold)
        assert held_out.classes == tuple(f"thing{c}" for c in range(8) if c % 4 == fold)
        base = Coco(coco, fold, "train")
        assert base.classes == tuple(f"thing{c}" for c in range(8) if c % 4 != fold)
        assert base.images(0)[0].startswith("train2014/COCO_train2014_")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # COCO's own
def test_every_mask_is_the_union_that_cocos_tools_draw(coco, capsys):
    tools = pycoco.COCO(coco / "annotations/instances_val2014.json")
    dataset = Coco(coco, 1)
    for label, name in enumerate(dataset.classes):
        (category,) = tools.getCatIds(catNms=[name])
        images = tools.loadImgs(tools.getImgIds(catIds=[category]))
        assert dataset.images(label) == sorted(f"val2014/{each['file_name']}" for each in images)
        for image in images:
            marked = tools.loadAnns(tools.getAnnIds(image["id"], [category], iscrowd=None))
            expected = np.max([tools.annToMask(each) for each in marked], axis=0)
            mask = dataset.mask(f"val2014/{image['file_name']}", label)
            np.testing.assert_array_equal(mask, expected)
            assert dataset.image(f"val2014/{image['file_name']}").shape[:2] == mask.shape


def test_crowds_and_both_kinds_of_run_lengths_are_in_the_masks(coco):
    dataset = Coco(coco, 0)
    polygons, with_crowd, _ = (dataset.mask(key, 0) for key in dataset.images(0))
    assert polygons[10, 10] == 1  # the polygon
    assert polygons[35, 15] == 0
    assert with_crowd[35, 15] == 1  # run lengths, a crowd


def test_another_layout_is_refused_with_the_expected_one(tmp_path, coco):
    with pytest.raises(InputError, match=r"has no annotations/instances_val2014.json; expected"):
        Coco(tmp_path, 0)
    (tmp_path / "annotations").symlink_to(coco / "annotations")
    with pytest.raises(InputError, match="has no val2014"):
        Coco(tmp_path, 0)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [5, 5], "size": [48, 64]},
        {"counts": [5, 48 * 63 - 5], "size": [48, 63]},
        {"counts": ";", "size": [48, 64]},
        {"counts": [48 * 65, -48], "size": [48, 64]},
        [[10, 10, 1e9, 10, 10, 1e9]],
        {"size": [48, 64]},
        "polygon",
        [[1.0, 2.0]],
        None,
    ],
)
def test_a_damaged_segmentation_is_refused(tmp_path, segmentation):
    root = make_coco(tmp_path, classes=4, per_class=1)
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(document))
    dataset = Coco(root, 0)
    words = r"image COCO_val2014_\d+\.jpg(: annotation \d+ \[0\] has | is not marked: )"
    with pytest.raises(InputError, match=words):
        dataset.mask(dataset.images(0)[0], 0)


def test_an_annotation_without_polygons_marks_nothing(tmp_path):
    root = make_coco(tmp_path, classes=4, per_class=1)
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(document))
    dataset = Coco(root, 0)
    assert not dataset.mask(dataset.images(0)[0], 0).any()


def test_an_annotation_of_no_image_is_skipped_and_named(tmp_path):
    root = make_coco(tmp_path, classes=4, per_class=2)
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    expected = Coco(root, 0).images(0)
    document["annotations"].append(document["annotations"][0] | {"image_id": 99999, "id": 5})
    path.write_text(json.dumps(document))
    with pytest.warns(InputNotice, match=r"skipped 1 annotations of.*5 \[\d+\] of image 99999"):
        assert Coco(root, 0).images(0) == expected


def test_a_file_that_is_not_cocos_is_refused(tmp_path):
    root = make_coco(tmp_path, classes=4, per_class=1)
    path = root / "annotations/instances_val2014.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="not a COCO annotation file"):
        Coco(root, 0)


def test_without_cocos_tools_the_extra_is_named(coco, monkeypatch):
    monkeypatch.setattr("uino_deploy.dependencies.is_importable", lambda module: False)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[coco\]"):
        Coco(coco, 0)


def test_a_size_that_is_not_the_images_is_refused_before_it_is_allocated(tmp_path):
    root = make_coco(tmp_path, classes=4, per_class=1)
    path = root / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    document["images"][0] |= {"height": 65_535, "width": 65_535}
    path.write_text(json.dumps(document))
    dataset = Coco(root, 0)
    with pytest.raises(InputError, match="65535 x 65535 pixels; it has 64 x 48"):
        dataset.mask(dataset.images(0)[0], 0)


def test_what_enroll_reads_evaluate_reads_too(tmp_path):
    root = make_coco(tmp_path, classes=4, per_class=1)
    path = root / "annotations/instances_val2014.json"
    expected = Coco(root, 0).mask(Coco(root, 0).images(0)[0], 0)
    document = json.loads(path.read_text())
    image = document["images"][0]
    image |= {"id": str(image["id"]), "height": 48.0, "width": None}
    first = document["annotations"][0] | {"iscrowd": None, "area": float("nan")}
    boxed = {"image_id": image["id"], "category_id": first["category_id"], "bbox": [0, 0, 1, 1]}
    document["annotations"] = [first, boxed, boxed | {"segmentation": [[1, 1, 5, 5]]}]
    path.write_bytes(json.dumps(document).encode("utf-8-sig"))
    dataset = Coco(root, 0)
    np.testing.assert_array_equal(dataset.mask(dataset.images(0)[0], 0), expected)


def test_two_categories_of_one_id_are_refused(tmp_path):
    path = make_coco(tmp_path) / "annotations/instances_val2014.json"
    document = json.loads(path.read_text())
    document["categories"][1]["id"] = str(document["categories"][0]["id"])
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="two categories of one id"):
        Coco(tmp_path, 1)
