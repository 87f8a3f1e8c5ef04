"""Baselines: right where they must be, run beside every model, and kept in results."""

import json

import numpy as np
import pytest
import torch

from uino_deploy.config import UinoConfig
from uino_deploy.data.objects import Objects
from uino_deploy.data.thing_dataset import ThingDataset
from uino_deploy.evaluation import evaluate
from uino_deploy.evaluation.baselines import (
    BASELINES,
    COLOURS,
    EVERYTHING,
    MODEL,
    PROTOTYPES,
    baseline_masks,
    with_baselines,
)
from uino_deploy.evaluation.episodes import load_episode, run_episodes, run_methods
from uino_deploy.evaluation.report import make_report
from uino_deploy.evaluation.segmenters import Answer, Segmenter, Tokens, model_segmenter
from uino_deploy.images import preprocess_mask
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS


def square(colour, corner, ground=(20, 90, 40), size=84):
    """Return an image of one square of 28 pixels, and its mask."""
    image = np.full((size, size, 3), ground, np.uint8)
    mask = np.zeros((size, size), np.uint8)
    inside = (slice(corner, corner + 28), slice(corner, corner + 28))
    image[inside], mask[inside] = colour, 1
    return image, mask


def tokens_of(shots, query_mask, patch=14):
    """Return tokens that tell foreground from background perfectly."""
    directions = np.array([[0, 1, 0.2], [1, 0, 0.2]], np.float32)
    shares = np.stack([preprocess_mask(mask, 84, patch) for _, mask in shots])
    asked = preprocess_mask(query_mask, 84, patch)
    return Tokens(directions[(shares > 0.5).astype(int)], shares,
                  directions[(asked > 0.5).astype(int)])  # fmt: skip


def test_colours_and_tokens_that_tell_the_class_find_it():
    shots = [square((220, 40, 30), 14), square((210, 50, 30), 42)]
    image, mask = square((215, 45, 30), 28)
    found = baseline_masks(shots, image, tokens_of(shots, mask))
    assert tuple(found) == BASELINES
    assert all(each.dtype == np.uint8 for each in found.values())
    assert found[EVERYTHING].all()
    for name in (COLOURS, PROTOTYPES):
        both, either = (found[name] & mask).sum(), (found[name] | mask).sum()
        assert both / either > 0.8, name


def test_another_colour_is_not_found_and_a_large_image_is_searched_at_its_own_size():
    shots = [square((220, 40, 30), 14)]
    image, mask = square((40, 60, 220), 28)
    tokens = tokens_of(shots, mask)
    assert not baseline_masks(shots, image, tokens)[COLOURS][mask == 1].any()
    large = np.kron(square((220, 40, 30), 28)[0], np.ones((10, 10, 1), np.uint8))
    found = baseline_masks(shots, large, tokens)
    assert {each.shape for each in found.values()} == {(840, 840)}
    assert found[COLOURS][300:540, 300:540].mean() > 0.95
    assert found[COLOURS].mean() < 0.15


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


def test_the_encoder_runs_once_for_the_model_and_the_prototypes(model):
    dataset, passes = ThingDataset("things"), []
    handle = model.encoder.register_forward_hook(lambda *_: passes.append(1))
    shots, query, _ = load_episode(dataset, dataset.episode(0, 0, 1))
    masks = with_baselines(model_segmenter(model))(shots, query)
    handle.remove()
    assert len(passes) == 2
    assert list(masks) == [MODEL, *BASELINES]
    np.testing.assert_array_equal(masks[MODEL], model_segmenter(model)(shots, query))


def test_the_tokens_are_the_last_layers_of_the_encoder(model):
    dataset = ThingDataset("things")
    shots, query, _ = load_episode(dataset, dataset.episode(0, 1, 2))
    tokens = model_segmenter(model).answer(shots, query).tokens
    side = model.config.image_size // model.config.encoder.patch
    assert tokens.support.shape == (2, side**2, model.config.encoder.width)
    assert tokens.query.shape == tokens.support.shape[1:]
    same = model_segmenter(model).answer(shots, shots[1][0]).tokens
    np.testing.assert_allclose(same.query, tokens.support[1], atol=1e-5)


def test_the_report_and_the_results_hold_the_baselines(model, tmp_path):
    save_checkpoint(model, tmp_path / "m.safetensors", {})
    path = tmp_path / "results.json"
    report = evaluate(tmp_path / "m.safetensors", "things", episodes=3, output=path)
    assert list(report.document["baselines"]) == list(BASELINES)
    names = [row[0] for row in report.paper_table[1]]
    assert names == [*BASELINES, "m.safetensors"]
    alone = run_episodes(
        EVERYTHING, lambda shots, query: np.ones(query.shape[:2], np.uint8),
        ThingDataset("things"), [ThingDataset("things").episode(2, index, 1) for index in range(3)],
    )  # fmt: skip
    assert report.document["baselines"][EVERYTHING]["miou"] == round(alone.score.miou, 3)
    again = evaluate(path, "things", episodes=3)
    assert again.document["baselines"] == report.document["baselines"]
    older = {k: v for k, v in json.loads(path.read_text()).items() if k != "baseline_runs"}
    path.write_text(json.dumps(older))
    assert evaluate(path, "things", episodes=3).document["baselines"] == {}


def test_a_model_named_like_a_baseline_has_a_row_of_its_own():
    dataset = Objects()
    episodes = [dataset.episode(0, index, 1) for index in range(2)]
    ours, theirs = (
        run_episodes(PROTOTYPES, lambda _, query, v=value: np.full(query.shape[:2], v, np.uint8),
                     dataset, episodes)
        for value in (1, 0)
    )  # fmt: skip
    runs = {None: ours}
    report = make_report("objects", 1, 0, runs, runs, None, {PROTOTYPES: {None: theirs}})
    names = [row[0] for row in report.paper_table[1]]
    assert names == [PROTOTYPES, f"{PROTOTYPES} (against)", f"{PROTOTYPES} (model)"]


def test_a_model_that_does_not_beat_the_best_baseline_is_called_so():
    dataset = Objects()
    episodes = [dataset.episode(0, index, 1) for index in range(8)]
    truth = Segmenter(lambda _, query: Answer(np.ones(query.shape[:2], np.uint8), None, 1, None))
    nothing = run_episodes("none", lambda _, query: np.zeros(query.shape[:2]), dataset, episodes)
    everything = run_episodes("all", truth, dataset, episodes)
    for run, other, words in ((nothing, everything, "no better than"),
                              (everything, nothing, "the best of the simple methods")):  # fmt: skip
        report = make_report("objects", 1, 0, {None: run}, {}, None, {other.name: {None: other}})
        assert words in report.sentences[-1]


def test_queries_without_the_class_are_counted():
    dataset = ThingDataset("things-absent")
    episodes = [dataset.episode(2, index, 1) for index in range(12)]
    shown = [bool(dataset.mask(each.query, each.label).any()) for each in episodes]
    assert 0 < sum(shown) < 12
    runs = run_methods(
        lambda _, query: {
            "none": np.zeros(query.shape[:2], np.uint8),
            "all": np.ones(query.shape[:2], np.uint8),
        },
        dataset,
        episodes,
    )
    assert runs["none"].absent == tuple(np.flatnonzero(~np.array(shown)).tolist())
    assert (runs["none"].left_empty, runs["all"].left_empty) == (100, 0)
    report = make_report("things-absent", 1, 2, {None: runs["none"]}, {})
    assert report.document["absent"] == {"episodes": 12 - sum(shown), "left_empty": 100}
    assert any("100.0 %" in sentence for sentence in report.sentences)
