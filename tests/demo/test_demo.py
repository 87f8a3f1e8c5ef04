"""The demo: its scores, its conditions of passing, its folder, and that it is whole or absent."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from uino_deploy.config import UinoConfig
from uino_deploy.data import load_pool
from uino_deploy.demo import run, run_demo
from uino_deploy.demo.results import Accuracy, Results, Threshold, spread
from uino_deploy.demo.segmentation import class_name, prototype_similarity
from uino_deploy.errors import OutputExists
from uino_deploy.model import save_checkpoint
from uino_deploy.model.assembly import assemble_from_parts
from uino_deploy.runtime import Encoded, Predictor, Support

GOOD = Results(
    bundle=Accuracy(74.0, 85.0),
    reference=Accuracy(74.1, 85.1),
    baseline=33.0,
    digits=Accuracy(54.0, 75.0),
    seconds_per_query=0.01,
    seconds={"export": 9.0},
    verify={"passed": True},
    provenance={},
    episodes={},
)


def test_good_results_pass_and_the_document_has_the_promised_keys():
    assert GOOD.failures == []
    document = GOOD.document()
    assert document["verdict"] == "PASSED"
    promised = "miou_reference miou_bundle miou_prototype_baseline miou_digits seconds_per_query"
    assert set(promised.split()) <= document.keys()
    assert document["miou_bundle"] == 74.0
    json.dumps(document)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verify": {"passed": False}}, "verification failed"),
        ({"bundle": Accuracy(60.0, 80.0), "reference": Accuracy(60.0, 80.0)}, "mIoU is 60.00"),
        ({"bundle": Accuracy(73.0, 84.0)}, "drift is 1.10"),
        ({"digits": Accuracy(30.0, 60.0)}, "digits mIoU is 30.00"),
        ({"baseline": 70.0}, "gain is 4.00"),
        ({"digits": Accuracy(float("nan"), 70.0)}, "digits mIoU is nan"),
    ],
    ids=["verify", "miou", "drift", "digits", "gain", "not a number"],
)
def test_each_condition_can_fail(change, reason):
    results = replace(GOOD, **change)
    assert any(failure.startswith(reason) for failure in results.failures)
    assert results.document()["verdict"] == "FAILED"


def test_threshold_sentences():
    assert Threshold("a", "It", 3.0, least=2).sentence == "It is at least 2 (measured 3.00)"
    assert Threshold("a", "It", 3.0, most=2).failure == "a is 3.00, not at most 2"
    assert Threshold("a", "It", 2.0, most=2).failure == ""


def test_spread_keeps_both_ends():
    assert list(spread(100, 5)) == [0, 25, 50, 74, 99]
    assert list(spread(3, 5)) == [0, 1, 2]
    assert list(spread(7, 1)) == [0]


def test_class_names_are_safe_in_files():
    pool = load_pool("held-out")
    names = [class_name(pool, label)[0] for label in range(len(pool.labels))]
    assert len(set(names)) == len(pool.labels) >= 40
    assert all(name.isascii() and name.isalnum() for name in names)


def test_prototype_similarity_is_high_where_the_foreground_is():
    tokens = np.zeros((1, 2, 16, 4), np.float32)
    tokens[:, -1, :, 0] = 1  # background everywhere
    tokens[:, -1, 5] = (0, 3, 0, 0)  # but in one patch
    support = Support(
        name="x",
        shots=1,
        precision="fp32",
        model="",
        fingerprint="",
        preprocess="",
        prototypes=np.array([[0, 2, 0, 0], [5, 0, 0, 0]], np.float32),
    )
    found = prototype_similarity(Encoded({"query_deep": tokens}, 8, 8), support)
    assert found.shape == (8, 8)
    assert np.unravel_index(found.argmax(), found.shape) in {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert found.min() == pytest.approx(-1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return an untrained checkpoint, with which the demo must fail."""
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors"
    made = assemble_from_parts(UinoConfig.from_preset("tiny"), seed=4)
    save_checkpoint(made.model, path, {"untrained": list(made.untrained)})
    return path


class Silent:
    """A progress display that counts its steps."""

    def __init__(self):
        self.steps = 0

    def __call__(self, _what, _total):
        return self

    def __enter__(self):
        return self.step

    def __exit__(self, *_error):
        return None

    def step(self):
        self.steps += 1


def small_demo(output, checkpoint, force=False):
    lines, progress = [], Silent()
    results = run_demo(output, lines.append, progress, force, checkpoint, 3, 2)
    return results, lines, progress


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint):
    """Return a demo's folder, its results, its lines and its progress."""
    folder = tmp_path_factory.mktemp("work") / "build" / "demo"
    return folder, *small_demo(folder, checkpoint)


def test_a_demo_leaves_everything_and_fails_untrained(tmp_path, checkpoint, finished):
    folder, results, lines, progress = finished
    assert progress.steps == 2 * 3 + 2
    assert [line.split(":")[0] for line in lines][:3] == ["load", "export", "verify"]
    assert results.verify["passed"]
    assert any(failure.startswith("mIoU is") for failure in results.failures)
    document = json.loads((folder / "report.json").read_text())
    assert document["verdict"] == "FAILED"
    assert document["provenance"]["checkpoint"]["untrained"]
    assert "FAILED" in (folder / "report.html").read_text(encoding="utf-8")
    counts = {name: len(list((folder / name).iterdir())) for name in ("queries", "masks", "truths")}
    assert counts == {"queries": 3, "masks": 3, "truths": 3}
    predictor = Predictor.load(folder / "demo.uino")
    (first, *_rest) = sorted((folder / "queries").iterdir())
    support = Support.load(folder / "supports" / f"{first.stem.split('_')[1]}.safetensors")
    predictor.predict(first, support)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["demo"]

    with pytest.raises(OutputExists):
        small_demo(folder, checkpoint)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "kept.txt").write_text("")
    with pytest.raises(OutputExists, match="not this command's output"):
        small_demo(notes, checkpoint, force=True)


def test_an_interrupted_demo_leaves_nothing(tmp_path, checkpoint, finished, monkeypatch):
    def copied(path, *_arguments):
        shutil.copytree(finished[0] / "demo.uino", path)
        return None, {}

    def interrupt(*_arguments):
        assert list(tmp_path.rglob("demo.uino/manifest.json"))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_make_bundle", copied)
    monkeypatch.setattr(run, "segment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small_demo(tmp_path / "demo", checkpoint)
    assert list(tmp_path.iterdir()) == []
