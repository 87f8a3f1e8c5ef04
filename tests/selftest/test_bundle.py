"""The inputs and the timing of the claims about pieces."""

from uino_deploy.selftest import bundle
from uino_deploy.selftest.bundle import median_ms


def test_the_median_leaves_out_the_first_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bundle.time, "perf_counter", lambda: now[0])
    waits = iter([5.0] * bundle._WARM + [0.001, 0.002, 0.003] + [0.002] * 100)
    assert abs(median_ms(lambda: now.__setitem__(0, now[0] + next(waits))) - 2) < 1e-6
