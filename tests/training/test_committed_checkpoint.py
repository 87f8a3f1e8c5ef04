"""The checkpoint in the repository: small, described, and as accurate as it states."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from uino_deploy.data import draw_episode, load_pool
from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.procedural import Procedural
from uino_deploy.evaluation.episodes import EVALUATION_SEED, run_episodes
from uino_deploy.evaluation.metrics import score_masks
from uino_deploy.evaluation.segmenters import model_segmenter
from uino_deploy.images import preprocess_image, preprocess_mask, upsample_logits
from uino_deploy.model.checkpoint import load_checkpoint, read_checkpoint_metadata
from uino_deploy.training.recipe import RECIPES

PATH = files("uino_deploy.assets").joinpath("tiny.safetensors")


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(PATH)


def test_it_is_the_whole_full_variant_in_at_most_4_mb(model):
    assert PATH.stat().st_size <= 4_000_000
    assert (model.config.preset, model.config.variant) == ("tiny", "full")
    assert model.prompt_generator.hypercorrelation is not None


@pytest.fixture(scope="module")
def provenance():
    return read_checkpoint_metadata(PATH).provenance


def test_its_provenance_says_how_it_was_made_and_what_it_reached(provenance):
    assert provenance["trained"] is True
    assert sum(stage["steps"] for stage in provenance["stages"]) == 12_600
    assert "in steps" in provenance["note"]
    for name in RECIPES["demo"].required_miou:
        assert provenance["measured"][name]["episodes"] == 1000


@pytest.mark.xfail(strict=True, reason="67.0 and 37.7: to be replaced by a run of the recipe")
def test_it_passes_the_gate_of_its_recipe(provenance):
    for name, required in RECIPES["demo"].required_miou.items():
        assert provenance["measured"][name]["miou"] >= required


# Measured over 1,000 episodes: 67.0 and 37.7; a hundred have a standard deviation of 3 points.
@pytest.mark.parametrize(("pool", "least"), [("held-out", 59), ("digits", 29)])
def test_it_segments_classes_it_never_saw(model, pool, least):
    dataset = Procedural(pool, pool)
    episodes = draw_list(dataset, 100, 1, EVALUATION_SEED)
    assert run_episodes(pool, model_segmenter(model), dataset, episodes).score.miou > least


def prototype_mious(model, name, seed, thresholds):
    """Return the mIoU of the encoder's similarity to the prototypes, cut at each threshold."""
    pool, size, patch = load_pool(name), model.config.image_size, model.config.encoder.patch
    episodes = [draw_episode(pool, seed, index) for index in range(40)]
    planes = []
    for episode in episodes:
        (shot,) = episode.support
        query, image = (preprocess_image(x.image, size) for x in (episode.query, shot))
        share = torch.from_numpy(preprocess_mask(shot.mask, size, patch))[None, None]
        with torch.inference_mode():
            features = model.enroll(torch.from_numpy(image)[None, None], share)
            _, deep = model.encoder(torch.from_numpy(query)[None])
            similarity = model.prompt_generator.similarity_map(deep, features.prototypes)
        plane = similarity.reshape(model.config.grid, -1).numpy()
        planes.append(upsample_logits(plane, *episode.query.mask.shape))
    labels = [episode.label for episode in episodes]
    truths = [episode.query.mask for episode in episodes]
    return [
        score_masks(len(pool.labels), labels, [plane > cut for plane in planes], truths).miou
        for cut in thresholds
    ]


def test_it_beats_its_own_prototypes_by_far(model):
    thresholds = np.linspace(-1, 1, 81)
    best = thresholds[np.argmax(prototype_mious(model, "base", 1, thresholds))]
    (baseline,) = prototype_mious(model, "held-out", EVALUATION_SEED, [best])
    dataset = Procedural("demo", "held-out")
    episodes = draw_list(dataset, 40, 1, EVALUATION_SEED)
    whole = run_episodes("tiny", model_segmenter(model), dataset, episodes).score.miou
    assert whole > baseline + 10
