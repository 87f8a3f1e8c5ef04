"""Counting copies: the scenes, the average precision, and what parting gives on true masks."""

import sys

import numpy as np
import pytest

pytest.importorskip("skimage")

from uino_deploy.data.copies import draw_copies
from uino_deploy.errors import DependencyError, InputError
from uino_deploy.evaluation import counting, evaluate
from uino_deploy.evaluation.counting import average_precision, measure_counting
from uino_deploy.evaluation.segmenters import Answer, Segmenter


def boxes(*places):
    masks = np.zeros((len(places), 20, 60), bool)
    for mask, (left, right) in zip(masks, places, strict=True):
        mask[5:15, left:right] = True
    return masks


def test_average_precision_of_a_known_case():
    truth = boxes((0, 10), (20, 30), (40, 50))
    found = boxes((0, 10), (0, 9), (21, 31), (52, 58))
    # Ranked: right, twice the same, right, wrong: precision 1, 1/2, 2/3, 1/2; falling 1, 2/3.
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision([truth], [(found, scores)]) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([truth], [(truth, scores[:3])]) == 1
    assert average_precision([truth], [(truth[:0], scores[:0])]) == 0


def test_a_scene_shows_copies_of_one_thing_that_do_not_overlap():
    counts = set()
    for index in range(8):
        episode = draw_copies(5, index)
        assert (episode.copies.sum(axis=0) <= 1).all()
        assert episode.copies.any(axis=(1, 2)).all()
        assert episode.support.mask.any()
        counts.add(len(episode.copies))
    assert len(counts) > 3
    np.testing.assert_array_equal(draw_copies(5, 7).image, episode.image)


def test_parting_at_necks_counts_true_masks_better_than_components_do(monkeypatch):
    scenes = [draw_copies(2, index) for index in range(12)]
    monkeypatch.setattr(counting, "draw_copies", lambda seed, index: scenes[index])

    def oracle(_, query):
        mask = next(each for each in scenes if each.image is query).copies.any(axis=0)
        logits = np.where(mask, 4, -4).astype(np.float32)
        return Answer(mask.astype(np.uint8), logits, 0.9, None)

    rows = {(row.masks, row.parted): row for row in measure_counting(Segmenter(oracle), 12, 2)}
    for masks in ("true", "predicted"):
        components, necks = rows[masks, "components"], rows[masks, "necks"]
        assert necks.error < components.error - 0.3, rows
        assert necks.ap50 > components.ap50 + 0.1
        assert necks.exact >= components.exact


def test_objects_are_counted_on_things_only(tmp_path):
    with pytest.raises(InputError, match="scenes of things, not on demo"):
        evaluate(tmp_path / "m.safetensors", "demo", instances=True)


def test_results_and_a_lack_of_scikit_image_are_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds results, and objects are counted by a model"):
        evaluate(tmp_path / "m.json", "things-unseen-hand", instances=True)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DependencyError, match="skimage is not installed"):
        evaluate(tmp_path / "m.safetensors", "things-unseen-hand", instances=True)
