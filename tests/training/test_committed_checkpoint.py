"""The checkpoint in the repository: small, described, and as good as it says."""

from importlib.resources import files

import pytest

from uino_deploy.data import load_pool
from uino_deploy.evaluation.pools import evaluate_episodes
from uino_deploy.evaluation.segmenters import (
    best_prototype_threshold,
    episode_segmenter,
    prototype_segmenter,
)
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
    assert evaluate_episodes(episode_segmenter(model), load_pool(pool), 100).miou > least


def test_it_beats_its_own_prototypes_by_far(model):
    threshold = best_prototype_threshold(model, load_pool("base"), episodes=40, seed=1)
    baseline = evaluate_episodes(prototype_segmenter(model, threshold), load_pool("held-out"), 40)
    whole = evaluate_episodes(episode_segmenter(model), load_pool("held-out"), 40)
    assert whole.miou > baseline.miou + 10
