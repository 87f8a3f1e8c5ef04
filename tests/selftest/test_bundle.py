"""The inputs and the timing of the claims about pieces."""

from types import SimpleNamespace

from uino_deploy.selftest import bundle
from uino_deploy.selftest.bundle import median_ms


def test_the_median_leaves_out_the_first_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bundle.time, "perf_counter", lambda: now[0])
    waits = iter([5.0] * bundle._WARM + [0.001, 0.002, 0.003] + [0.002] * 100)
    assert abs(median_ms(lambda: now.__setitem__(0, now[0] + next(waits))) - 2) < 1e-6


def test_a_board_is_held_to_the_forecast_either_way():
    def found(backend: str, error: float, forecast: float = 1e-3) -> list[bool]:
        described = SimpleNamespace(describe=lambda: {"backend": backend})
        return [each.holds for each in bundle._forecast(described, error, forecast)]

    assert found("tensorrt-rtx", 3e-3) == [True, True]
    assert found("tensorrt", 5e-3) == [False, True]
    assert found("tensorrt", 1e-4) == [True, False]
    assert found("tensorrt", float("inf")) == [False, True]
    assert found("onnxruntime", 1e-4) == [True]  # a CPU may compute in float32
    assert found("tensorrt", 1e-6, 0.0) == []  # all of it is float32, and judged as such
