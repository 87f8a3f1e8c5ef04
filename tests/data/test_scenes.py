"""Scenes: the masks are where the ink is, and the drawing keeps its promises."""

import numpy as np
import pytest

from uino_deploy.data.glyphs import STROKES, glyph_sprite
from uino_deploy.data.scenes import SCENE_SIZE, compose_scene


def sprites(characters: str) -> list[np.ndarray]:
    return [glyph_sprite(c, "DejaVuSans-Bold", STROKES[0]) for c in characters]


@pytest.mark.parametrize("seed", range(20))
def test_glyphs_are_lighter_than_the_ground_and_masks_are_where_they_are(seed):
    scene = compose_scene(sprites("ABC"), np.random.default_rng(seed))
    ink = scene.masks.any(axis=0)
    grey = scene.image.astype(float).mean(axis=2)
    edge = _dilated(ink) & ~_eroded(ink)
    inside, outside = grey[ink & ~edge], grey[~ink & ~edge]
    assert inside.min() > np.median(outside)
    assert np.quantile(outside, 0.99) < np.quantile(inside, 0.01)


@pytest.mark.parametrize("seed", range(20))
def test_masks_are_disjoint_and_none_is_empty(seed):
    scene = compose_scene(sprites("WMQR"), np.random.default_rng(seed))
    assert scene.masks.sum(axis=0).max() == 1
    assert scene.masks.any(axis=(1, 2)).all()
    assert len(scene.masks) == len(scene.placed)
    assert scene.placed[0] == 0
    assert len(scene.placed) >= 2


def test_a_glyphs_longer_side_is_a_third_to_two_thirds_of_the_scene():
    for seed in range(30):
        scene = compose_scene(sprites("O"), np.random.default_rng(seed))
        rows, columns = np.nonzero(scene.masks[0])
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.30 * SCENE_SIZE < side < 0.75 * SCENE_SIZE


def test_the_same_generator_state_gives_the_same_scene_and_another_gives_another():
    first, again, other = (
        compose_scene(sprites("AB"), np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_a_scene_has_the_size_asked_for():
    scene = compose_scene(sprites("AB"), np.random.default_rng(0), size=70)
    assert scene.image.shape == (70, 70, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape == (2, 70, 70)


def _dilated(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 2)
    size = len(mask)
    return np.any([padded[i : i + size, j : j + size] for i in range(5) for j in range(5)], axis=0)


def _eroded(mask: np.ndarray) -> np.ndarray:
    return ~_dilated(~mask)
