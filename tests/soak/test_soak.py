"""The short form of the long run: two backends, and every planted leak is noticed."""

import sys

import numpy as np
import pytest

from tests.runtime.conftest import write_fake_bundle
from tests.soak import __main__ as command
from tests.soak.__main__ import run
from tests.soak.soak import PLANTS, grows, trend
from uino_deploy.dependencies import is_importable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fake_bundle(tmp_path_factory.mktemp("soak") / "fake.uino")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_200_predictions_leave_nothing_behind(bundle, backend):
    if not is_importable(backend):
        pytest.skip(f"needs {backend}")
    found = run(bundle, backend, 200)
    assert found["faults"] == []
    assert found["concurrent_unequal"] == 0
    assert found["forked"].startswith("refused: this process was forked")


@pytest.mark.parametrize(
    ("plant", "fault"),
    [("memory", "memory grows by "), ("handle", "file handles vary"), ("thread", "threads vary")],
)
def test_a_planted_leak_is_noticed(bundle, plant, fault):
    faults = run(bundle, "onnxruntime", 200, plant=plant)["faults"]
    assert any(each.startswith(fault) for each in faults), faults


def test_a_run_that_is_too_short_to_judge_is_a_fault(bundle):
    (fault,) = run(bundle, "onnxruntime", 200, seconds=0)["faults"]
    assert fault.startswith("only 1 predictions in ")


@pytest.mark.parametrize("asked", [[], ["--backend", "openvino"]])
def test_a_backend_that_did_not_run_is_no_pass(bundle, tmp_path, monkeypatch, asked):
    """ONNX Runtime always runs; of the others those that are installed, or asked for."""
    written = tmp_path / "soak.json"
    words = ["soak", "--bundle", str(bundle), "-o", str(written), *asked]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(command, "is_importable", lambda _name: False)
    with pytest.raises(SystemExit, match="did not run: not installed"):
        command.main()
    assert not written.exists()


def test_every_plant_is_tested():
    assert set(PLANTS) == {"", "memory", "handle", "thread"}


def test_the_slope_and_its_error():
    rng, numbers = np.random.default_rng(0), np.arange(0, 20_000, 100)
    flat = 10**8 + rng.normal(0, 1000, 200)
    slope, error = trend(numbers, flat + 2.5 * numbers)
    assert error < 50
    assert slope == pytest.approx(2500, abs=3 * error)
    # Samples that follow their neighbours are worth fewer: the error is that of the true slopes.
    walks = [trend(numbers, 10**8 + np.cumsum(rng.normal(0, 1000, 200))) for _ in range(200)]
    spread = np.std([slope for slope, _ in walks])
    assert np.mean([error for _, error in walks]) > 0.4 * spread
    assert trend(numbers, np.full(200, 10**8)) == (0, 0)


def test_what_grows_is_told_from_noise():
    assert grows(600_000, 10_000, 18_000)
    assert not grows(400_000, 10_000, 18_000)
    assert not grows(600_000, 50_000, 18_000)
    assert not grows(600_000, 0, 180)  # a step of an allocator
    assert grows(100_000_000, 1_000_000, 180)
