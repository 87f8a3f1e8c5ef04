"""A user's own folder of images and masks."""

import numpy as np
import pytest

from tests.data.miniatures import make_folder
from uino_deploy.data.folder import Folder
from uino_deploy.errors import InputError


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
