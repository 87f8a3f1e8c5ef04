"""Bootstrap intervals: they cover, they narrow, and pairing helps."""

import numpy as np

from uino_deploy.evaluation.intervals import SAMPLED, bootstrap, bootstrap_difference
from uino_deploy.evaluation.metrics import score_counts


def drawn(rng, episodes, classes=5, noise=0.0):
    """Return labels and counts of episodes whose IoU is about 60 %, with a class's own offset."""
    labels = np.arange(episodes) % classes
    share = np.clip(0.6 + 0.05 * labels + 0.15 * rng.standard_normal(episodes), 0, 1)
    share = np.clip(share + noise * rng.standard_normal(episodes), 0, 1)
    union = rng.integers(200, 2000, size=episodes)
    both = (share * union).astype(np.int64)
    ground = np.full(episodes, 10_000)
    counts = np.stack([both, union, ground - union, ground - both], axis=1)
    return labels.tolist(), counts


def test_the_interval_holds_the_true_figure_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels, large = drawn(rng, 200_000)
    truth = score_counts(5, labels, large).miou
    inside = 0
    for _ in range(60):
        interval = bootstrap(5, *drawn(rng, 200)).miou
        inside += interval.low <= truth <= interval.high
    assert inside >= 50


def test_more_episodes_give_a_narrower_interval_around_the_figure():
    rng = np.random.default_rng(1)
    widths = []
    for episodes in (100, 1600):
        labels, counts = drawn(rng, episodes)
        intervals = bootstrap(5, labels, counts)
        assert intervals == bootstrap(5, labels, counts)  # the same each time
        score = score_counts(5, labels, counts)
        assert intervals.miou.low < score.miou < intervals.miou.high
        assert intervals.fb_iou.low < score.fb_iou < intervals.fb_iou.high
        widths.append(intervals.miou.high - intervals.miou.low)
    assert 2.5 < widths[0] / widths[1] < 6.5  # about 4


def test_a_paired_difference_is_sharper_than_the_figures_themselves():
    rng = np.random.default_rng(2)
    labels, counts = drawn(rng, 400)
    worse = counts.copy()
    worse[:, 0] = (0.98 * counts[:, 0]).astype(np.int64)
    alone = bootstrap(5, labels, counts).miou
    paired = bootstrap_difference(5, labels, counts, worse).miou
    assert 0 < paired.low < paired.high < 3
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    same = bootstrap_difference(5, labels, counts, counts)
    assert (same.miou.low, same.miou.high, same.fb_iou.high) == (0, 0, 0)


def test_many_classes_are_resampled_too():
    """With one episode each, the interval of the mean is about 4 of its standard errors wide."""
    rng = np.random.default_rng(3)
    few, many = SAMPLED - 1, 4 * SAMPLED
    labels, counts = drawn(rng, few, few)
    fixed = bootstrap(few, labels, counts).miou
    assert fixed.low == fixed.high
    labels = list(range(many))
    share = np.clip(0.6 + 0.15 * rng.standard_normal(many), 0, 1)
    both = (share * 1000).astype(np.int64)
    counts = np.stack([both, np.full(many, 1000), np.full(many, 9000), 10_000 - both], axis=1)
    sampled = bootstrap(many, labels, counts).miou
    expected = 2 * 1.96 * 100 * share.std() / many**0.5
    assert 0.85 < (sampled.high - sampled.low) / expected < 1.15
    worse = counts.copy()
    worse[:, 0] -= 10
    paired = bootstrap_difference(many, labels, counts, worse).miou
    assert paired.high - paired.low < 0.1
