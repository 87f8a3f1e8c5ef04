"""Episodes and pools: deterministic, of one pool, with the promised distractors."""

import numpy as np
import pytest

from uino_deploy.data import draw_episode, load_pool


@pytest.mark.parametrize("name", ["base", "held-out", "digits"])
def test_the_same_arguments_give_the_same_pixels(name):
    pool = load_pool(name)
    first, again = draw_episode(pool, 5, 17, shots=2), draw_episode(pool, 5, 17, shots=2)
    for one, other in zip(
        (*first.support, first.query), (*again.support, again.query), strict=True
    ):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.labels == other.labels
    different = draw_episode(pool, 6, 17, shots=2)
    assert not np.array_equal(first.query.image, different.query.image)


@pytest.mark.parametrize("name", ["base", "held-out", "digits"])
def test_support_and_query_show_the_class_among_one_to_three_others(name):
    pool = load_pool(name)
    for index in range(40):
        episode = draw_episode(pool, 0, index)
        for scene in (*episode.support, episode.query):
            assert scene.labels[0] == episode.label
            assert 2 <= len(scene.labels) <= 4
            assert len(set(scene.labels)) == len(scene.labels)
            assert max(scene.labels) < len(pool.labels)
            np.testing.assert_array_equal(scene.mask, scene.scene.masks[0])
            assert 0 < scene.mask.mean() < 0.4


def test_each_round_of_episodes_shows_every_class_once():
    pool = load_pool("held-out")
    for start in (0, 80):
        labels = [draw_episode(pool, 3, start + i, size=56).label for i in range(80)]
        assert sorted(labels) == list(range(80))


def test_the_digits_are_ten_classes_of_many_hands():
    pool = load_pool("digits")
    rng = np.random.default_rng(0)
    assert pool.labels == tuple("0123456789")
    sprites = {pool.sprite(3, rng).tobytes() for _ in range(50)}
    assert len(sprites) > 30


def test_a_pools_glyphs_are_drawn_in_many_fonts_and_strokes():
    pool = load_pool("base")
    rng = np.random.default_rng(0)
    assert len({pool.sprite(0, rng).tobytes() for _ in range(200)}) > 20


def test_the_number_of_shots_is_the_number_of_supports():
    assert len(draw_episode(load_pool("digits"), 0, 0, shots=5).support) == 5


def test_nothing_but_its_shape_tells_the_target_from_the_distractors():
    pool = load_pool("base")
    scenes = [draw_episode(pool, 1, index).query.scene for index in range(400)]
    rows, columns = np.mgrid[:112, :112] - 55.5
    radius = np.hypot(rows, columns)

    def compare(measure):
        target = np.array([measure(scene, 0) for scene in scenes])
        others = np.array([measure(s, g) for s in scenes for g in range(1, len(s.masks))])
        error = np.sqrt(target.var() / len(target) + others.var() / len(others))
        return abs(target.mean() - others.mean()) / error

    def area(scene, glyph):
        return scene.masks[glyph].sum()

    def distance_from_the_centre(scene, glyph):
        return radius[scene.masks[glyph]].mean()

    def brightness(scene, glyph):
        return scene.image[scene.masks[glyph]].mean()

    assert compare(area) < 4
    assert compare(distance_from_the_centre) < 4
    assert compare(brightness) < 4
