"""Segmenters for evaluation: they feed the model the same inputs as elsewhere."""

import numpy as np
import pytest
import torch

from uino_deploy.config import UinoConfig
from uino_deploy.data import draw_episode, load_pool
from uino_deploy.evaluation.segmenters import model_segmenter, open_segmenter, query_logits
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


def test_the_models_logits_are_upsampled_and_cut(model, tmp_path):
    episode = draw_episode(load_pool("held-out"), 0, 0, shots=2)
    support = np.stack([preprocess_image(s.image, 112) for s in episode.support])
    masks = np.stack([preprocess_mask(s.mask, 112, 14) for s in episode.support])
    query = preprocess_image(episode.query.image, 112)
    with torch.inference_mode():
        logits, _ = model(*(torch.from_numpy(a)[None] for a in (query, support, masks)))
        large = torch.nn.functional.interpolate(logits, size=(112, 112), mode="bilinear")[0, 0]
    shots = [(scene.image, scene.mask) for scene in episode.support]
    ours = query_logits(model, shots, episode.query.image)
    np.testing.assert_allclose(ours, large.numpy(), atol=1e-4)
    mask = model_segmenter(model)(shots, episode.query.image)
    np.testing.assert_array_equal(mask, ours > 0)
    assert mask.dtype == np.uint8
    save_checkpoint(model, tmp_path / "tiny.safetensors", {})
    opened = open_segmenter(tmp_path / "tiny.safetensors")
    np.testing.assert_array_equal(opened(shots, episode.query.image), mask)
