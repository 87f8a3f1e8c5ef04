"""Segmenters for evaluation: they feed the model as it is fed elsewhere."""

import numpy as np
import pytest
import torch

from uino_deploy.config import UinoConfig
from uino_deploy.data import draw_episode, load_pool
from uino_deploy.evaluation.segmenters import (
    best_prototype_threshold,
    episode_segmenter,
    prototype_segmenter,
)
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.model.segmenter import UinoFSS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


def test_the_models_mask_is_its_logits_upsampled_and_cut(model):
    episode = draw_episode(load_pool("held-out"), 0, 0, shots=2)
    support = np.stack([preprocess_image(s.image, 112) for s in episode.support])
    masks = np.stack([preprocess_mask(s.mask, 112, 14) for s in episode.support])
    query = preprocess_image(episode.query.image, 112)
    with torch.inference_mode():
        logits, _ = model(*(torch.from_numpy(a)[None] for a in (query, support, masks)))
        large = torch.nn.functional.interpolate(logits, size=(112, 112), mode="bilinear")[0, 0]
    threshold = large.median().item()
    found = episode_segmenter(model, threshold)(episode)
    clear = (large - threshold).abs() > 1e-4
    np.testing.assert_array_equal(found[clear], (large > threshold)[clear])


def test_the_baselines_mask_shrinks_as_its_threshold_rises(model):
    episode = draw_episode(load_pool("held-out"), 0, 1)
    areas = [prototype_segmenter(model, t)(episode).sum() for t in (-3, 0, 3)]
    assert areas[0] == 112 * 112
    assert areas[0] > areas[1] > areas[2] == 0


def test_the_best_threshold_is_at_least_as_good_as_marking_everything(model):
    pool = load_pool("digits")
    threshold = best_prototype_threshold(model, pool, episodes=10, seed=1)
    assert -1 <= threshold <= 1
