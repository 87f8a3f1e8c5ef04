"""PASCAL-5i on a miniature VOC 2012 with SBD."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.miniatures import labelled, make_voc, write_jpeg
from uino_deploy.data.pascal import CLASSES, Pascal
from uino_deploy.errors import InputError


@pytest.mark.parametrize("fold", range(4))
def test_a_fold_holds_out_five_consecutive_classes(voc, fold):
    held_out, base = Pascal(voc, fold), Pascal(voc, fold, "train")
    assert held_out.classes == CLASSES[5 * fold : 5 * fold + 5]
    assert sorted(held_out.classes + base.classes) == sorted(CLASSES)


def test_judged_on_validation_images_that_show_the_class(voc):
    dataset = Pascal(voc, 1)
    label = dataset.classes.index("bus")  # class 6: the main object of its own, beside class 5
    assert dataset.images(label) == [
        *(f"JPEGImages/2008_val_05_{index}.jpg" for index in range(3)),
        *(f"JPEGImages/2008_val_06_{index}.jpg" for index in range(3)),
    ]


def test_trained_on_sbd_without_the_validation_images(voc):
    dataset = Pascal(voc, 0, "train")
    names = {key for label in range(15) for key in dataset.images(label)}
    parts = {name.split("_")[1] for name in names}
    assert parts == {"train", "sbd"}


def test_a_mask_is_the_class_and_the_void_border(voc):
    dataset = Pascal(voc, 0)
    mask = dataset.mask("JPEGImages/2008_val_02_0.jpg", 1)
    labels = labelled(2, 3)
    expected = np.where(labels == 2, 1, np.where(labels == 255, 255, 0))
    np.testing.assert_array_equal(mask, expected)
    assert dataset.image("JPEGImages/2008_val_02_0.jpg").shape == (40, 60, 3)
    other = dataset.mask("JPEGImages/2008_val_02_0.jpg", 2)  # the neighbouring class, no border
    assert (other[5:20, 40:55] == 1).all()
    assert (other[10:26, 7:28] == 0).all()


def test_sbd_masks_come_from_mat_files_or_from_palettes_alike(voc, tmp_path):
    as_png = make_voc(tmp_path, per_class=1, sbd="png")
    key = "JPEGImages/2008_sbd_07_0.jpg"
    mat = Pascal(voc, 0, "train")
    png = Pascal(as_png, 0, "train")
    label = mat.classes.index(CLASSES[6])
    np.testing.assert_array_equal(mat.mask(key, label) == 1, png.mask(key, label) == 1)


def test_images_that_only_sbd_holds_are_found(voc, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    name = "2008_sbd_07_0"
    (root / "VOC2012/JPEGImages" / f"{name}.jpg").unlink()
    write_jpeg(root / "SBD/dataset/img" / f"{name}.jpg", 1)
    assert Pascal(root, 0, "train").image(f"JPEGImages/{name}.jpg").shape == (40, 60, 3)


def test_voc_itself_and_the_devkit_are_found(voc, tmp_path):
    assert Pascal(voc / "VOC2012", 0).images(0) == Pascal(voc, 0).images(0)
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit/VOC2012").symlink_to(voc / "VOC2012")
    assert Pascal(tmp_path, 0).images(0) == Pascal(voc, 0).images(0)


def test_sbd_is_found_beside_voc_and_as_torchvision_leaves_it(voc, tmp_path):
    expected = Pascal(voc, 0, "train").images(0)
    assert Pascal(voc / "VOC2012", 0, "train").images(0) == expected
    (tmp_path / "VOC2012").symlink_to(voc / "VOC2012")
    (tmp_path / "sbd").symlink_to(voc / "SBD/dataset")
    assert Pascal(tmp_path, 0, "train").images(0) == expected


def test_another_layout_is_refused_with_the_expected_one(tmp_path):
    with pytest.raises(InputError, match=r"has no ImageSets.*VOC2012/\{JPEGImages"):
        Pascal(tmp_path, 0)
    with pytest.raises(InputError, match="not a folder"):
        Pascal(tmp_path / "nowhere", 0)
    root = make_voc(tmp_path / "without", per_class=1, sbd="none")
    with pytest.raises(InputError, match=r"SBD does not exist beside .*SegmentationClassAug"):
        Pascal(root, 0, "train")
    shutil.rmtree(root / "VOC2012/SegmentationClass")
    with pytest.raises(InputError, match="has no SegmentationClass;"):
        Pascal(root, 0)


def test_a_fold_is_needed_and_must_exist(voc):
    with pytest.raises(InputError, match="needs a fold; give --fold 0 to 3"):
        Pascal(voc, None)
    with pytest.raises(InputError, match="has no fold 4"):
        Pascal(voc, 4)


def test_masks_in_colour_and_damaged_ones_are_refused(tmp_path):
    root = make_voc(tmp_path, per_class=1)
    path = root / "VOC2012/SegmentationClass/2008_val_01_0.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(InputError, match="mode RGB, not class numbers"):
        Pascal(root, 0).images(0)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        Pascal(root, 0).images(0)
    path.unlink()
    with pytest.raises(InputError, match="has no mask of image 2008_val_01_0"):
        Pascal(root, 0).images(0)
    mat = root / "SBD/dataset/cls/2008_sbd_06_0.mat"
    mat.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="GTcls"):
        Pascal(root, 0, "train").mask("JPEGImages/2008_sbd_06_0.jpg", 0)


@pytest.mark.parametrize("which", ["VOC2012/ImageSets/Segmentation/train", "SBD/dataset/train"])
def test_a_list_that_is_no_text_is_refused(voc, tmp_path, which):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    (root / f"{which}.txt").write_bytes(b"2008_train_01_0\n\xff\xfe\n")
    with pytest.raises(InputError, match="is not a list of images"):
        Pascal(root, 0, "train")


def test_a_damaged_matlab_file_is_refused(voc, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    path = root / "SBD" / "dataset" / "cls" / "2008_sbd_07_0.mat"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"is not one of SBD's GTcls files: .* over the end"):
        Pascal(root, 0, "train").shown_labels()
