"""Drawn examples: a light letter, its mask, the same for the same seed."""

import numpy as np

from uino_deploy.letters import draw_letter


def test_an_example_is_a_light_letter_and_its_mask():
    image, mask = draw_letter(3, "R")
    assert (image.shape, image.dtype, mask.dtype) == ((160, 160, 3), np.uint8, np.uint8)
    assert 0.02 < mask.mean() < 0.3
    assert image[mask == 1].mean() > image[mask == 0].mean() + 80
    again = draw_letter(3, "R")
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], mask)
    assert (draw_letter(4, "R")[0] != image).any()
    assert (draw_letter(3, "E")[1] != mask).any()
