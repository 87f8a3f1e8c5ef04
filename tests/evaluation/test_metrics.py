"""mIoU and FB-IoU against sums written out by hand."""

import numpy as np
import pytest

from uino_deploy.data import draw_episode, load_pool
from uino_deploy.evaluation.metrics import (
    count_pixels,
    foreground_iou,
    score_counts,
    score_masks,
)


def test_two_classes_by_hand():
    predicted = [[1, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 0, 0]]
    truths = [[0, 1, 1, 0]], [[1, 0, 0, 0]], [[0, 0, 1, 1]]
    score = score_masks(3, [0, 0, 2], map(np.array, predicted), map(np.array, truths))
    # Class 0: 1 of 3, then 1 of 1; its ground 1 of 3, then 3 of 3. Class 2: 0 of 2; ground 2 of 4.
    assert score.miou == pytest.approx(100 * (2 / 4 + 0 / 2) / 2)
    assert score.fb_iou == pytest.approx(100 * (2 / 6 + 6 / 10) / 2)


def test_classes_that_never_appeared_do_not_count():
    assert score_masks(80, [41], [np.ones((4, 4))], [np.ones((4, 4))]).miou == 100


@pytest.mark.parametrize("value", [True, np.uint8(1), np.uint8(255), 0.5])
def test_any_non_zero_value_is_foreground(value):
    predicted, truth = np.full((2, 2), value), np.ones((2, 2), dtype=np.uint8)
    assert score_masks(1, [0], [predicted], [truth]).miou == 100


def test_one_masks_iou():
    assert foreground_iou(np.array([[1, 1, 0]]), np.array([[0, 1, 1]])) == pytest.approx(1 / 3)
    assert foreground_iou(np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_the_truth_scores_100_and_every_glyph_about_a_third():
    pool = load_pool("held-out")
    episodes = [draw_episode(pool, 2, index) for index in range(80)]
    labels = [episode.label for episode in episodes]
    truths = [episode.query.mask for episode in episodes]
    perfect = score_masks(len(pool.labels), labels, truths, truths)
    assert (perfect.miou, perfect.fb_iou) == (100, 100)
    # An oracle of saliency that marks all glyphs, without matching: the bar to beat.
    glyphs = [episode.query.scene.masks.any(axis=0) for episode in episodes]
    assert 25 < score_masks(len(pool.labels), labels, glyphs, truths).miou < 48


def independent_scores(classes, labels, predictions, truths):
    """Count with histograms over label planes, as few-shot segmentation codes do in PyTorch."""
    intersection, union = np.zeros((2, classes)), np.zeros((2, classes))
    for label, predicted, truth in zip(labels, predictions, truths, strict=True):
        kept = np.where(truth == 255, 255, predicted)  # ignored on both sides
        edges = [-0.5, 0.5, 1.5]
        hit = np.histogram(kept[kept == truth], bins=edges)[0]
        found, real = (np.histogram(plane, bins=edges)[0] for plane in (kept, truth))
        intersection[:, label] += hit
        union[:, label] += found + real - hit
    seen = np.unique(labels)
    iou = intersection[:, seen] / np.maximum(union[:, seen], 1)
    both = intersection[:, seen].sum(axis=1) / union[:, seen].sum(axis=1)
    return 100 * iou[1].mean(), 100 * both.mean()


@pytest.mark.parametrize("seed", range(5))
def test_random_masks_with_ignored_pixels_against_an_independent_count(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, size=60)
    shapes = [tuple(rng.integers(3, 40, size=2)) for _ in labels]
    truths = [rng.choice([0, 1, 255], p=[0.6, 0.3, 0.1], size=s).astype(np.uint8) for s in shapes]
    masks = [rng.integers(0, 2, size=s).astype(np.uint8) for s in shapes]
    score = score_masks(7, labels.tolist(), masks, truths)
    expected = independent_scores(7, labels, masks, truths)
    assert (score.miou, score.fb_iou) == pytest.approx(expected, abs=1e-9)
    counts = np.stack([count_pixels(*pair) for pair in zip(masks, truths, strict=True)])
    again = score_counts(7, labels.tolist(), counts)
    assert (again.miou, again.fb_iou) == (score.miou, score.fb_iou)
    assert np.mean(list(score.class_ious.values())) == pytest.approx(score.miou)


def test_ignored_pixels_count_nowhere():
    predicted, truth = np.array([[1, 1, 0, 0]]), np.array([[1, 255, 0, 255]])
    score = score_masks(1, [0], [predicted], [truth])
    assert (score.miou, score.fb_iou) == (100, 100)
