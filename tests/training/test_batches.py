"""Batches: the same every time, and prepared as the runtime prepares images and masks."""

import numpy as np
import pytest
import torch

from uino_deploy.config import UinoConfig
from uino_deploy.data import draw_episode, load_pool
from uino_deploy.data.thing_episodes import sample_episode
from uino_deploy.data.things import Things
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.training.batches import NO_CLASS, draw_batch, draw_things, patch_shares
from uino_deploy.training.recipe import SMALL

CONFIG = UinoConfig.from_preset("tiny")


@pytest.fixture(scope="module")
def batch():
    return draw_batch([load_pool("base")], CONFIG, seed=4, step=3, episodes=2)


def test_the_same_step_gives_the_same_batch(batch):
    again = draw_batch([load_pool("base")], CONFIG, seed=4, step=3, episodes=2)
    for one, other in zip(batch, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_supports_come_first_then_queries_as_the_runtime_prepares_them(batch):
    drawn = [draw_episode(load_pool("base"), 4, index) for index in (6, 7)]
    scenes = [episode.support[0] for episode in drawn] + [episode.query for episode in drawn]
    for row, scene in enumerate(scenes):
        np.testing.assert_array_equal(batch.images[row], preprocess_image(scene.image, 112))
        glyphs = len(scene.labels)
        assert batch.labels[row].tolist()[:glyphs] == list(scene.labels)
        assert set(batch.labels[row].tolist()[glyphs:]) <= {NO_CLASS}
        np.testing.assert_allclose(
            batch.shares[row, 0], preprocess_mask(scene.mask, 112, 14), atol=1e-6
        )
    np.testing.assert_array_equal(batch.truth[1], drawn[1].query.mask)


def test_patch_shares_are_those_of_preprocess_mask():
    masks = np.random.default_rng(0).random((3, 56, 56)) < 0.4
    expected = [preprocess_mask(mask.astype(np.uint8), 56, 14) for mask in masks]
    np.testing.assert_allclose(patch_shares(masks, 14), expected, atol=1e-6)


def test_a_batch_of_things_is_what_its_episodes_show():
    config = SMALL
    batch = draw_things(config, seed=1, step=2, episodes=3, absent=0.5)
    rng = np.random.default_rng([1, 2])
    drawn = [sample_episode(rng, "training", absent=0.5, varied=True) for _ in range(3)]
    present = [episode.present for episode in drawn]
    assert True in present
    assert False in present
    concepts = Things.load().concepts("training")
    for row, episode in enumerate(drawn):
        (shot,) = episode.support
        assert concepts[batch.labels[row, 0]] == episode.concept
        np.testing.assert_allclose(
            batch.shares[row, 0], preprocess_mask(shot.mask, 168, 14), atol=1e-6
        )
        np.testing.assert_array_equal(batch.truth[row], episode.query.mask)
        query = 3 + row
        np.testing.assert_array_equal(
            batch.images[query], preprocess_image(episode.query.image, 168)
        )
        assert (batch.labels[query, 0] == NO_CLASS) == (not episode.present)
        assert batch.shares[query, 0].any() == episode.present
        shown = [label for label in batch.labels[query].tolist() if label != NO_CLASS]
        assert concepts[shown].tolist() == list(episode.query.concepts)
