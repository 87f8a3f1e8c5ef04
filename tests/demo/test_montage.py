"""The demo's pictures show correct, wrong and missed pixels."""

from types import SimpleNamespace

import numpy as np

from uino_deploy.demo.montage import gallery
from uino_deploy.painting import (
    FALSE_COLOUR,
    HIT_COLOUR,
    MISSED_COLOUR,
    RISING,
    SOLID,
    paint,
    paint_prediction,
)

GREY = np.full((4, 4, 3), 100, np.uint8)
TRUTH = np.zeros((4, 4), np.uint8)
TRUTH[:2] = 1
FOUND = np.zeros((4, 4), np.uint8)
FOUND[1:3] = 1


def near(colour: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    """Return whether a painted pixel is the colour over a grey of 100."""
    return bool(np.abs(colour - (0.3 * 100 + 0.7 * np.array(wanted))).max() <= 1)


def test_paint_marks_and_dims():
    painted = paint(GREY, [(TRUTH != 0, (255, 0, 0), SOLID)])
    assert near(painted[0, 0], (255, 0, 0))
    assert painted[3, 3].max() < 50
    assert (GREY == 100).all()


def test_a_pattern_leaves_gaps_of_the_dimmed_image_in_its_region_only():
    painted = paint(GREY, [(TRUTH != 0, (255, 0, 0), RISING)])
    dimmed = (painted[:2] == painted[3, 3]).all(axis=2)
    assert 0 < dimmed.sum() < dimmed.size / 2
    assert near(painted[0, 0], (255, 0, 0))


def test_a_prediction_is_painted_right_wrong_and_missed():
    painted = paint_prediction(GREY, TRUTH, FOUND)
    assert near(painted[1, 0], HIT_COLOUR)
    assert near(painted[2, 0], FALSE_COLOUR)
    assert near(painted[0, 0], MISSED_COLOUR)


def test_an_example_holds_its_pictures_and_grades():
    shot = SimpleNamespace(image=GREY, mask=TRUTH)
    outcome = SimpleNamespace(
        title="A",
        iou=1 / 3,
        episode=SimpleNamespace(support=[shot], query=shot),
        result=SimpleNamespace(mask=FOUND, score=0.5),
    )
    (example,) = gallery("worst", [outcome]).examples
    assert example.facts == [("IoU 33", "poor"), ("predicted IoU 50", "")]
    assert [picture.caption for picture in example.pictures] == [
        "support",
        "query",
        "truth",
        "prediction",
    ]
    assert (example.pictures[1].pixels == GREY).all()
    assert (example.pictures[3].pixels == paint_prediction(GREY, TRUTH, FOUND)).all()
    assert all("A" in picture.alt or "prediction" in picture.alt for picture in example.pictures)
