"""Export does not change the mIoU: `evaluate` on a bundle and on its model."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.miniatures import make_voc
from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.procedural import Procedural
from uino_deploy.evaluation import evaluate
from uino_deploy.evaluation.episodes import load_episode, run_episodes
from uino_deploy.evaluation.segmenters import bundle_segmenter, model_segmenter
from uino_deploy.model import save_checkpoint
from uino_deploy.runtime import Predictor


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, {})
    return path


def test_a_bundle_has_its_models_miou(model, bundle):
    pytest.importorskip("matplotlib")
    dataset = Procedural("demo", "held-out")
    for shots in (1, 3):
        episodes = draw_list(dataset, 6, shots, seed=2)
        predictor = Predictor.load(bundle.root)
        ours = run_episodes("bundle", bundle_segmenter(predictor), dataset, episodes)
        reference = run_episodes("model", model_segmenter(model), dataset, episodes)
        assert abs(ours.score.miou - reference.score.miou) < 0.1
        assert abs(ours.score.fb_iou - reference.score.fb_iou) < 0.1
        assert ours.score.miou > 0


def test_a_bundle_gives_the_baselines_its_models_tokens(model, bundle):
    pytest.importorskip("matplotlib")
    dataset = Procedural("demo", "held-out")
    shots, query, _ = load_episode(dataset, dataset.episode(2, 0, 2))
    reference = model_segmenter(model).answer(shots, query)
    predictor = Predictor.load(bundle.root)
    support = predictor.enroll(shots, "class", calibrated=False)
    # As for a variant without hypercorrelation, whose classes hold no tokens.
    without = SimpleNamespace(
        bundle=predictor.bundle,
        encode=predictor.encode,
        enroll=lambda shots, name, calibrated: SimpleNamespace(deep=None),
        predict=lambda encoded, _: predictor.predict(encoded, support),
    )
    for opened in (predictor, without):
        ours = bundle_segmenter(opened).answer(shots, query)
        assert ours.resemblance == pytest.approx(reference.resemblance, abs=2e-3)
        assert ours.iou == pytest.approx(reference.iou, abs=2e-3)
        for name in ("support", "shares", "query"):
            np.testing.assert_allclose(
                getattr(ours.tokens, name),
                getattr(reference.tokens, name),
                atol=2e-3,
                err_msg=name,
            )


def test_they_are_compared_on_the_same_episodes(bundle, checkpoint, tmp_path):
    root = make_voc(tmp_path / "voc", per_class=2)
    path = tmp_path / "fold.json"
    report = evaluate(
        bundle.root, "pascal", data=root, fold=1, episodes=6, against=checkpoint,
        max_miou_drop=0.1, output=path,
    )  # fmt: skip
    document = report.document
    assert document["passed"] is True
    assert abs(document["against"]["difference"]) < 0.1
    assert document["per_class"].keys() <= {"bus", "car", "cat", "chair", "bottle", "cow"}
    assert {key: document[key] for key in ("dataset", "fold", "shots", "episodes", "seed")} == {
        "dataset": "pascal", "fold": 1, "shots": 1, "episodes": 6, "seed": 2,
    }  # fmt: skip
    again = evaluate(
        checkpoint, "pascal", data=root, fold=1, episodes=6, against=path, max_miou_drop=0.1
    )
    assert again.failures == []
    (paper, *_ours) = again.paper_table[1]
    assert paper[0] == "UINO-FSS (paper)"
    assert "80.6" in paper
