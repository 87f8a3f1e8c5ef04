"""Objects in masks: parted where they touch, and described as pycocotools describes them."""

import numpy as np
import pytest

pytest.importorskip("skimage")

from uino_deploy.images import upsample_logits
from uino_deploy.images.coco_file import mask_of_runs, runs_of_mask
from uino_deploy.images.instances import find_instances, part_objects


def discs(height, width, *places):
    rows, columns = np.mgrid[:height, :width]
    inside = [(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in places]
    return np.logical_or.reduce(inside)


def found(mask, shape):
    logits = np.where(mask, 3, -3).astype(np.float32)
    full = (upsample_logits(logits, *shape) > 0).astype(np.uint8)
    return full, find_instances(full, logits, 0.8)


@pytest.mark.parametrize("shape", [(128, 128), (96, 400), (1000, 700)])
def test_touching_discs_are_two_objects_at_any_size(shape):
    mask, instances = found(discs(64, 64, (30, 18, 13), (30, 43, 13)), shape)
    left, right = sorted(each.box for each in instances.objects)
    assert left[2] <= right[0] + 0.02 * shape[1]
    assert right[2] - left[0] == np.ptp(np.flatnonzero(mask.any(axis=0))) + 1
    assert sum(each.area for each in instances.objects) == mask.sum()
    for each in instances.objects:
        assert each.area == pytest.approx(mask.sum() / 2, rel=0.03)
        assert 0.6 < each.score < 0.8
    assert instances.labels.shape == shape


def test_a_bar_and_a_ring_are_one_object_each():
    bar = np.zeros((64, 64), bool)
    bar[4:9, 3:60] = True
    ring = discs(64, 64, (40, 32, 18)) & ~discs(64, 64, (40, 32, 9))
    assert [each.area for each in found(bar | ring, (64, 64))[1].objects] == [
        ring.sum(),
        bar.sum(),
    ]


def test_the_largest_is_first_and_specks_are_left_out():
    mask, instances = found(discs(64, 64, (20, 20, 6), (40, 44, 14), (60, 5, 2)), (64, 64))
    assert len(instances.objects) == 2
    assert instances.objects[0].area > instances.objects[1].area
    assert instances.labels[40, 44] == 1
    assert mask[60, 5] == 1
    assert instances.labels[60, 5] == 0


def test_an_empty_and_a_full_mask():
    assert found(np.zeros((16, 16), bool), (40, 40))[1].objects == ()
    (only,) = found(np.ones((16, 16), bool), (30, 40))[1].objects
    assert (only.box, only.area) == ((0, 0, 40, 30), 1200)


def test_more_objects_than_eight_bits_hold():
    plane = np.zeros((160, 160), np.uint8)
    plane[2::8, 2::8] = 1
    plane = plane.repeat(3, 0).repeat(3, 1)
    instances = find_instances(plane, np.where(plane[::3, ::3], 3, -3).astype(np.float32), 1)
    assert len(instances.objects) == 400
    assert instances.labels.dtype == np.uint16
    assert instances.labels.max() == 400


def test_boxes_areas_and_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask as tools

    _, instances = found(discs(64, 64, (30, 18, 13), (33, 42, 14), (58, 5, 5)), (90, 150))
    assert len(instances.objects) == 3
    for index, each in enumerate(instances.objects):
        mine = instances.mask(index)
        runs = runs_of_mask(mine)
        np.testing.assert_array_equal(mask_of_runs(runs, *mine.shape), mine)
        theirs = tools.frPyObjects({"counts": runs, "size": list(mine.shape)}, *mine.shape)
        assert theirs["counts"] == tools.encode(np.asfortranarray(mine))["counts"]
        assert int(tools.area(theirs)) == each.area
        left, top, right, bottom = each.box
        assert tools.toBbox(theirs).tolist() == [left, top, right - left, bottom - top]


def test_spacing_is_that_of_the_image():
    mask = discs(60, 60, (30, 15, 13), (30, 45, 13)).astype(np.uint8)
    assert part_objects(mask[:, ::2], (1, 2)).max() == 2
    assert not part_objects(np.zeros((5, 7), np.uint8)).any()
