"""Masks drawn over images."""

import numpy as np

from uino_deploy.images import (
    class_colour,
    overlay,
)


def test_an_overlay_tints_the_inside_and_outlines_it(picture):
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[5:20, 10:30] = 1
    before = picture.copy()
    drawn = overlay(picture, mask, (255, 0, 0))
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(drawn[mask == 0], picture[mask == 0])
    assert (drawn[5, 10:30] == (255, 0, 0)).all()
    inside = drawn[10, 15].astype(int)
    np.testing.assert_allclose(inside, 0.6 * picture[10, 15] + (102, 0, 0), atol=1)


def test_a_mask_that_reaches_the_border_has_no_contour_along_it():
    image = np.zeros((30, 30, 3), np.uint8)
    drawn = overlay(image, np.ones((30, 30), np.uint8), (200, 100, 50))
    assert (drawn == (80, 40, 20)).all()


def test_twenty_classes_have_colours_far_apart():
    colours = np.array([class_colour(index) for index in range(20)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() > 40
