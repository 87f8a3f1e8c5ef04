"""Presence: what resembles the class more than its background scores higher."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uino_deploy.bundle.presence import Calibration, calibrate, resemblance

TOKENS = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)  # a row of the object, one without
PROTOTYPES = np.array([[2, 0], [0, 3]], np.float16)


def logits(*rows):
    return np.repeat(np.array(rows, np.float32), 4)[:, None].repeat(8, axis=1)


def test_the_marked_area_is_compared_with_object_and_background():
    assert resemblance(logits(30, -30), TOKENS, PROTOTYPES) == pytest.approx(1)
    assert resemblance(logits(-30, 30), TOKENS, PROTOTYPES) == pytest.approx(-1)
    assert resemblance(logits(3, 3), TOKENS, PROTOTYPES) == pytest.approx(0, abs=1e-7)


def test_where_nothing_is_marked_the_likeliest_area_counts():
    assert resemblance(logits(-300, -200), TOKENS, PROTOTYPES) == pytest.approx(-1)
    assert resemblance(logits(-2000, -2100), TOKENS, PROTOTYPES) == pytest.approx(1)
    assert np.isfinite(resemblance(logits(-2, -2), 0 * TOKENS, PROTOTYPES))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.lists(st.floats(-2, 2), max_size=9))
def test_a_line_lies_between_shots_and_negatives(shots, negatives):
    line = calibrate(shots, negatives)
    assert line.scale > 0
    scores = [line.score(value) for value in (-2, line.middle, 2)]
    assert scores == sorted(scores)
    assert scores[1] == 0.5
    assert 0 <= scores[0] <= scores[2] <= 1


def test_negatives_move_the_line():
    alone, few, more = calibrate([0.4]), calibrate([0.4, 0.4]), calibrate([0.4], [0.2, 0.2])
    assert (alone.middle, few.middle) == (0, 0.2)
    assert more.middle == pytest.approx(0.3)
    assert more.score(0.4) == pytest.approx(1 / (1 + np.exp(-2)))
    assert few.score(0.3) > 0.5 >= more.score(0.3)
    assert Calibration(0, 1e-9).score(-2) == pytest.approx(0)
