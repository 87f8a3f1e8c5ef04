"""Exported bundles on OpenVINO, with our operators in its own."""

import os
import sys
from pathlib import Path

import pytest

openvino = pytest.importorskip("openvino")

from tests.soak.soak import used, work  # noqa: E402
from uino_deploy.bundle import Bundle  # noqa: E402
from uino_deploy.child import Child  # noqa: E402
from uino_deploy.config import UinoConfig  # noqa: E402
from uino_deploy.export import verify_bundle  # noqa: E402
from uino_deploy.runtime import Predictor, openvino_backend  # noqa: E402


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_exported_bundle_passes_verification(exported, model, precision):
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        pytest.skip("this processor does not compute bfloat16")
    backend = openvino_backend.OpenVinoBackend(threads=1, cache=False)
    report = verify_bundle(exported(precision), backend, model)
    assert report.reason == ""
    worst = max(compared.relative_l2 for compared in report.pieces)
    assert worst < 1e-4 if precision == "fp32" else 1e-4 < worst < 0.1


def growth_where_the_second_thread_never_comes(path, _note):
    """Return the bytes that a prediction keeps; a child's job."""
    backend = openvino_backend.OpenVinoBackend(threads=2, cache=False)
    predictor = Predictor(Bundle.open(Path(path)), backend)
    turns = work(predictor)
    for turn in turns * 5:
        predictor.predict(*turn)
    core = min(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
    before, _, _ = used()
    for number in range(100):
        predictor.predict(*turns[number % 3])
    return (used()[0] - before) / 100


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_prediction_keeps_no_memory_where_the_second_thread_never_comes(bundle):
    with Child(f"{__name__}:{growth_where_the_second_thread_never_comes.__name__}") as child:
        growth = child.ask(str(bundle.root), seconds=120)
    assert growth < 20_000  # spread over two threads it is 358 kB


@pytest.mark.parametrize(
    ("preset", "size", "spread"),
    [
        ("tiny", 112, set()),
        ("vits14", 112, set()),
        ("vits14", 224, {"encoder"}),
        ("vitl14", 224, {"encoder"}),
        ("vitb14", 518, {"encoder", "prompt"}),
    ],
)
def test_pieces_with_long_layers_use_all_threads(bundle, preset, size, spread):
    config = UinoConfig.from_preset(preset, image_size=size)
    sized = Bundle(bundle.root, bundle.manifest, config)
    backend = openvino_backend.OpenVinoBackend(threads=2, cache=False)
    asked = {n for n in ("encoder", "prompt") if backend.spreads(sized, sized.piece(n))}
    assert asked == spread
    assert not any(backend.each(lambda name: backend.spreads(sized, sized.piece(name)),
                                ["encoder", "prompt"]))  # fmt: skip
