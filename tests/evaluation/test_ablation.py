"""The ablation's rows: what differs between them, and that finished ones are not run again."""

import json

import pytest
import torch
from click.testing import CliRunner

from uino_deploy.cli._options import Settings
from uino_deploy.cli.ablate import _ROWS, ablate
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.evaluation.ablation import ROWS, new_model
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_rows_differ_in_what_they_name(base):
    assert tuple(ROWS) == _ROWS
    parts = {}
    for key, row in ROWS.items():
        model = new_model(base, row, seed=1)
        prompts = model.prompt_generator
        parts[key] = (
            prompts.semantic is not None,
            type(prompts.hypercorrelation).__name__,
            prompts.contrastive,
        )
        assert same(model.encoder, base.encoder)
        assert same(model.decoder, base.decoder)
        assert same(model.adapter, base.adapter) == (key != "undistilled")
    assert parts["ba-pcs"] == (False, "NoneType", False)
    assert parts["svp"] == parts["frozen"] == parts["undistilled"] == (True, "NoneType", False)
    assert parts["mhcm"] == (True, "Hypercorrelation", False)
    assert parts["ce"] == parts["cp4d"] == (True, "Hypercorrelation", True)
    mhcm, cp4d = (new_model(base, ROWS[key], 1) for key in ("ce", "cp4d"))
    assert {n for n, _ in mhcm.named_parameters()} != {n for n, _ in cp4d.named_parameters()}


def test_the_papers_numbers_are_those_of_its_tables():
    assert [ROWS[key].paper for key in _ROWS] == [58.2, 59.6, 62.3, 64.5, 64.0, 52.8, 57.2]


def test_rows_are_run_once_and_compared_on_the_same_episodes(base, tmp_path):
    pytest.importorskip("matplotlib")
    checkpoint = tmp_path / "base.safetensors"
    save_checkpoint(base, checkpoint, {})
    words = [
        "--checkpoint", str(checkpoint), "--row", "svp", "--row", "frozen", "--steps", "1",
        "--batch", "2", "--episodes", "3", "-o", str(tmp_path / "rows"), "--json",
    ]  # fmt: skip
    first = CliRunner().invoke(ablate, words, obj=Settings())
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert set(document["rows"]) == {"svp", "frozen"}
    assert document["table"][1]["against"] == "+ SVP (compact)"
    assert document["table"][1]["paper's"] == "-2.4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("it trained again"))
        again = CliRunner().invoke(ablate, words, obj=Settings())
    assert json.loads(again.stdout) == document
    other = [*words[:-1], "--lr", "0.5"]
    refused = CliRunner().invoke(ablate, other, obj=Settings())
    assert isinstance(refused.exception, InputError)
    assert "learning_rate" in str(refused.exception)
