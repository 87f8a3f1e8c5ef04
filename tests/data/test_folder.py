"""A user's own folder of images and masks."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.miniatures import make_folder, write_jpeg
from uino_deploy.data.folder import Folder
from uino_deploy.data.open import open_dataset
from uino_deploy.errors import InputError
from uino_deploy.inputs import InputNotice


def test_one_class_is_called_as_its_folder(tmp_path):
    dataset = Folder(make_folder(tmp_path / "mug", 6))
    assert dataset.classes == ("mug",)
    assert dataset.images(0) == [f"images/{index:03d}.jpg" for index in range(6)]
    mask = dataset.mask("images/002.jpg", 0)
    assert set(np.unique(mask)) == {0, 1}  # 255 is the object here, not an ignored pixel
    assert mask[7:25, 10:40].all()
    assert dataset.image("images/002.jpg").shape == (40, 60, 3)


def test_several_classes_have_a_folder_each(tmp_path):
    dataset = Folder(make_folder(tmp_path, 3, ("mug", "box")))
    assert dataset.classes == ("box", "mug")
    assert dataset.images(1)[0] == "mug/images/000.jpg"
    with pytest.raises(InputError, match="no image"):
        dataset.mask("mug/images/000.jpg", 0)


def test_a_query_without_the_class_is_another_classs_picture(tmp_path):
    root = make_folder(tmp_path, 3, ("mug", "box"))
    dataset = Folder(root)
    episode = dataset.episode(0, 0, 1)
    with pytest.raises(InputError, match=r"every image .* shows 'mug'"):  # both hold the same ones
        dataset.absent(replace(episode, label=1), 0, 0)
    write_jpeg(root / "box/images/002.jpg", 100)
    absent = dataset.absent(replace(episode, label=1), 0, 0)
    assert (absent.query, absent.absent) == ("box/images/002.jpg", True)
    image, mask = dataset.query(absent)
    assert image.shape[:2] == mask.shape
    assert not mask.any()


def test_the_folds_split_the_images(tmp_path):
    root = make_folder(tmp_path, 10)
    everything = Folder(root).images(0)
    for fold in range(5):
        test, train = Folder(root, fold).images(0), Folder(root, fold, "train").images(0)
        assert sorted([*test, *train]) == everything
        assert len(test) == 2


def test_what_lacks_a_partner_is_named(tmp_path):
    root = make_folder(tmp_path, 4)
    (root / "masks/002.png").unlink()
    with pytest.raises(InputError, match=r"1 files have no partner in .*masks, the first 002"):
        Folder(root)
    (root / "images/002.jpg").unlink()
    (root / "images/001.jpg").unlink()
    with pytest.raises(InputError, match=r"in .*images, the first 001"):
        Folder(root)


def test_too_few_images_and_other_layouts_are_refused(tmp_path):
    with pytest.raises(InputError, match="has 1 of its 4 images in the test images of fold 0"):
        Folder(make_folder(tmp_path / "few", 4), 0)
    with pytest.raises(InputError, match=r"has no images; expected: DIR/\{images"):
        Folder(tmp_path / "few" / "images")
    with pytest.raises(InputError, match="has no fold 5"):
        Folder(tmp_path / "few", 5)
    (tmp_path / "few/images/000.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has 000\.jpg and 000.png"):
        Folder(tmp_path / "few")


def test_vocs_border_in_a_mask_is_ignored(tmp_path):
    root = make_folder(tmp_path / "mug", 3)
    labels = np.zeros((40, 60), np.uint8)
    labels[5:25, 10:40], labels[8:22, 13:37] = 255, 15
    Image.fromarray(labels).save(root / "masks/001.png")
    with pytest.warns(InputNotice, match="a border of 255, which is ignored"):
        mask = Folder(root).mask("images/001.jpg", 0)
    np.testing.assert_array_equal(mask == 1, labels == 15)
    np.testing.assert_array_equal(mask == 255, labels == 255)


def test_partners_in_two_unicode_forms_and_files_that_are_skipped(tmp_path):
    root = make_folder(tmp_path / "mug", 3)
    (root / "images/001.jpg").rename(root / "images/Caf\u0065\u0301.jfif")
    (root / "masks/001.png").rename(root / "masks/Caf\u00e9.png")
    (root / "images/notes.heic").write_bytes(b"")
    with pytest.warns(InputNotice, match=r"images: not images, skipped: notes\.heic"):
        dataset = Folder(root)
    key = next(key for key in dataset.images(0) if "Caf" in key)
    assert dataset.mask(key, 0).any()
    assert dataset.image(key).shape == (40, 60, 3)


def test_a_label_and_bits_are_taken_as_in_enroll(tmp_path):
    root = make_folder(tmp_path / "mug", 3)
    labels = np.zeros((40, 60), np.uint8)
    labels[5:25, 10:20], labels[5:25, 30:40] = 3, 7
    Image.fromarray(labels).save(root / "masks/001.png")
    (root / "images/001.jpg").unlink()
    Image.fromarray(np.full((40, 60), 1023, np.uint16)).save(root / "images/001.png")
    dataset = open_dataset("folder", root, label=7, bits=12)
    np.testing.assert_array_equal(dataset.mask("images/001.png", 0), labels == 7)
    assert dataset.image("images/001.png").max() == round(1023 * 255 / 4095)
    with pytest.raises(InputError, match="data set demo states its labels and bits"):
        open_dataset("demo", label=7)
