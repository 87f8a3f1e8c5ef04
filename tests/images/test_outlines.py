"""Outlines enclose the mask's pixels and no others, whatever its holes and corners."""

import numpy as np
import pytest

pytest.importorskip("skimage")

from uino_deploy.images.annotation import _rasterise
from uino_deploy.images.outlines import outlines_of_mask


def filled(outlines, shape):
    """Return the pixels inside an odd number of outlines."""
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        one = np.zeros(shape, np.uint8)
        _rasterise(outline, one)
        mask ^= one
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_outlines_give_the_mask_back(seed):
    random = np.random.default_rng(seed)
    mask = (random.random((9 + seed, 13)) < 0.1 + 0.15 * seed).astype(np.uint8)
    assert (filled(outlines_of_mask(mask), mask.shape) == mask).all()


def test_a_ring_has_two_outlines_and_a_full_mask_one():
    ring = np.ones((7, 9), np.uint8)
    assert len(outlines_of_mask(ring)) == 1
    ring[3, 4] = 0
    assert len(outlines_of_mask(ring)) == 2
    assert outlines_of_mask(np.zeros_like(ring)) == []
