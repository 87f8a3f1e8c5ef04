"""What the claims about pieces are checked on, and how they are timed."""

import numpy as np

from uino_deploy.selftest import pieces
from uino_deploy.selftest.pieces import median_ms, scene


def test_a_scene_is_a_light_letter_and_its_mask():
    image, mask = scene(3, "R")
    assert (image.shape, image.dtype, mask.dtype) == ((160, 160, 3), np.uint8, np.uint8)
    assert 0.02 < mask.mean() < 0.3
    assert image[mask == 1].mean() > image[mask == 0].mean() + 80
    again = scene(3, "R")
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], mask)
    assert (scene(4, "R")[0] != image).any()
    assert (scene(3, "E")[1] != mask).any()


def test_the_median_leaves_out_the_first_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pieces.time, "perf_counter", lambda: now[0])
    waits = iter([5.0] * pieces._WARM + [0.001, 0.002, 0.003] + [0.002] * 100)
    assert abs(median_ms(lambda: now.__setitem__(0, now[0] + next(waits))) - 2) < 1e-6
