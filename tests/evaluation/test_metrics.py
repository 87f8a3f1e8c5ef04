"""mIoU and FB-IoU against sums written out by hand."""

import numpy as np
import pytest

from uino_deploy.data import draw_episode, load_pool
from uino_deploy.evaluation.metrics import SegmentationScore
from uino_deploy.evaluation.pools import evaluate_episodes, every_glyph


def test_two_classes_by_hand():
    score = SegmentationScore(3)
    score.add(0, np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 0]]))  # 1 of 3; ground 1 of 3
    score.add(0, np.array([[1, 0, 0, 0]]), np.array([[1, 0, 0, 0]]))  # 1 of 1; ground 3 of 3
    score.add(2, np.array([[0, 0, 0, 0]]), np.array([[0, 0, 1, 1]]))  # 0 of 2; ground 2 of 4
    assert score.miou == pytest.approx(100 * (2 / 4 + 0 / 2) / 2)
    assert score.fb_iou == pytest.approx(100 * (2 / 6 + 6 / 10) / 2)


def test_classes_that_never_appeared_do_not_count():
    score = SegmentationScore(80)
    score.add(41, np.ones((4, 4)), np.ones((4, 4)))
    assert score.miou == 100


@pytest.mark.parametrize("found", [True, np.uint8(1), np.uint8(255), 0.5])
def test_any_non_zero_value_is_foreground(found):
    score = SegmentationScore(1)
    score.add(0, np.full((2, 2), found), np.ones((2, 2), dtype=np.uint8))
    assert score.miou == 100


def test_the_truth_scores_100_and_every_glyph_about_a_third():
    pool = load_pool("held-out")
    perfect = evaluate_episodes(lambda episode: episode.query.mask, pool, 40)
    assert (perfect.miou, perfect.fb_iou, perfect.episodes) == (100, 100, 40)
    oracle = evaluate_episodes(every_glyph, pool, 80)
    assert 25 < oracle.miou < 48


def test_the_episodes_of_an_evaluation_are_those_of_its_seed():
    pool = load_pool("digits")
    seen = []

    def remember(episode):
        seen.append(episode.query.image)
        return episode.query.mask

    evaluate_episodes(remember, pool, 2, seed=9)
    for index, image in enumerate(seen):
        np.testing.assert_array_equal(image, draw_episode(pool, 9, index).query.image)


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
    found = [rng.integers(0, 2, size=s).astype(np.uint8) for s in shapes]
    score = SegmentationScore(7)
    counts = [score.add(*each) for each in zip(labels, found, truths, strict=True)]
    expected = independent_scores(7, labels, found, truths)
    assert (score.miou, score.fb_iou) == pytest.approx(expected, abs=1e-9)
    again = SegmentationScore.of(7, labels.tolist(), np.stack(counts))
    assert (again.miou, again.fb_iou) == (score.miou, score.fb_iou)
    assert np.mean(list(score.class_ious.values())) == pytest.approx(score.miou)


def test_ignored_pixels_count_nowhere():
    score = SegmentationScore(1)
    score.add(0, np.array([[1, 1, 0, 0]]), np.array([[1, 255, 0, 255]]))
    assert (score.miou, score.fb_iou) == (100, 100)
