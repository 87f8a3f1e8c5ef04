"""FSS-1000 on three miniature classes."""

import numpy as np
import pytest
from PIL import Image

from uino_deploy.data.fss1000 import Fss1000, held_out_classes
from uino_deploy.errors import InputError


def test_the_published_test_classes():
    assert len(held_out_classes()) == 240
    assert {"bus", "abe's_flyingfish", "tower_pisa"} <= held_out_classes()


def test_classes_go_to_their_split(fss):
    assert Fss1000(fss).classes == ("bus", "swan")
    assert Fss1000(fss, "train").classes == ("abacus",)


def test_ten_images_and_masks_cut_at_half(fss):
    dataset = Fss1000(fss)
    keys = dataset.images(0)
    assert len(keys) == 10
    assert "bus/3.jpg" in keys
    mask = dataset.mask("bus/3.jpg", 0)
    expected = np.zeros((32, 32))
    expected[4:13, 6:20] = 1
    np.testing.assert_array_equal(mask, expected)
    assert dataset.image("bus/3.jpg").shape == (32, 32, 3)
    with pytest.raises(InputError, match="no mask"):
        dataset.mask("bus/3.jpg", 1)


def test_the_archives_folders_are_found(fss, tmp_path):
    nested = tmp_path / "fewshot_data"
    nested.mkdir()
    (nested / "fewshot_data").symlink_to(fss)
    assert Fss1000(tmp_path).classes == Fss1000(fss).classes


def test_another_layout_is_refused(tmp_path, fss):
    with pytest.raises(
        InputError, match=r"no test class of FSS-1000; expected: fewshot_data/CLASS"
    ):
        Fss1000(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        Fss1000(tmp_path / "nowhere")


def test_a_damaged_mask_is_refused(tmp_path):
    folder = tmp_path / "bus"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    (folder / "1.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        Fss1000(tmp_path).mask("bus/1.jpg", 0)
