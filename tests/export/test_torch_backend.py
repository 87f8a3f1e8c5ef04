"""PyTorch as a backend is the model that was exported."""

import copy
import json

import numpy as np
import pytest

from uino_deploy.cli import main
from uino_deploy.errors import InputError
from uino_deploy.export import verify_bundle
from uino_deploy.export.torch_backend import TorchBackend
from uino_deploy.letters import draw_letter
from uino_deploy.model.checkpoint import save_checkpoint
from uino_deploy.runtime import Predictor


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(model, path, {})
    return path


def test_every_piece_is_pytorchs_to_the_last_bits(bundle, checkpoint):
    report = verify_bundle(bundle, TorchBackend(checkpoint))
    assert report.passed, report.reason
    assert max(compared.relative_l2 for compared in report.pieces) < 1e-5
    assert report.backend["backend"] == "torch"


def test_it_predicts_what_onnxruntime_predicts(bundle, checkpoint):
    predictors = [
        Predictor(bundle, TorchBackend(checkpoint)),
        Predictor.load(bundle.root, threads=1),
    ]
    shot, query = draw_letter(1), draw_letter(2)[0]
    one, other = (each.predict(query, each.enroll([shot], "disc")) for each in predictors)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-3 * np.abs(other.logits).max())


def test_another_models_checkpoint_is_refused(bundle, model, tmp_path):
    other = copy.deepcopy(model)
    other.encoder.cls_token.data += 1
    save_checkpoint(other, tmp_path / "other.safetensors", {})
    with pytest.raises(InputError, match=r"not exported from .*other\.safetensors"):
        TorchBackend(tmp_path / "other.safetensors").load(bundle, "encoder")


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--json"])
    return stopped.value.code, capsys.readouterr()


def test_the_command_takes_the_checkpoint(bundle, checkpoint, capsys):
    asked = ("verify", bundle.root, "--backend", "torch")
    code, captured = command(capsys, *asked, "--torch-checkpoint", checkpoint)
    assert code == 0
    assert json.loads(captured.out)["backend"]["backend"] == "torch"
    code, captured = command(capsys, *asked)
    assert code == 2
    assert "--torch-checkpoint" in captured.err
    code, captured = command(capsys, "verify", bundle.root, "--torch-checkpoint", checkpoint)
    assert code == 2
    assert "--backend torch" in captured.err
