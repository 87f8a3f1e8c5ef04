"""The ablation's rows: their differences, and that finished ones do not run again."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click import Context
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.pages import ROOT
from uino_deploy.cli import cli
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.evaluation.report import run_document
from uino_deploy.files import sha256
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.studies import ablate
from uino_deploy.studies.ablation import ENCODER, RESULTS, Budget, renew, run_row, table
from uino_deploy.studies.rows import ROWS, new_model
from uino_deploy.training import from_scratch


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_command_offers_the_rows():
    (option,) = (p for p in cli.get_command(Context(cli), "ablate").params if p.name == "rows")
    assert tuple(option.type.choices) == tuple(ROWS)


def test_rows_differ_in_what_they_name(base):
    parts = {}
    for key, row in ROWS.items():
        model = new_model(base, row, seed=1)
        prompts = model.prompt_generator
        parts[key] = (
            prompts.semantic is not None,
            type(prompts.hypercorrelation).__name__,
            prompts.contrastive,
        )
        own = row.encoder_width is not None
        assert model.config.encoder.width == (row.encoder_width or base.config.encoder.width)
        assert own or same(model.encoder, base.encoder)
        assert same(model.decoder, base.decoder)
        assert row.fresh_adapter == (own or key == "undistilled")
        assert own or same(model.adapter, base.adapter) == (key != "undistilled")
    assert parts["ba-pcs"] == (False, "NoneType", False)
    compact = ("svp", "frozen", "undistilled", "encoder-64", "encoder-128", "encoder-192")
    assert {parts[key] for key in compact} == {(True, "NoneType", False)}
    assert parts["mhcm"] == (True, "Hypercorrelation", False)
    assert parts["ce"] == parts["cp4d"] == (True, "Hypercorrelation", True)
    mhcm, cp4d = (new_model(base, ROWS[key], 1) for key in ("ce", "cp4d"))
    assert {n for n, _ in mhcm.named_parameters()} != {n for n, _ in cp4d.named_parameters()}


def test_the_papers_numbers_are_those_of_its_tables():
    assert [ROWS[key].paper for key in ROWS] == [
        *(58.2, 59.6, 62.3, 64.5, 64.0, 52.8, 57.2),
        *(54.3, 59.6, 60.7),
    ]


def test_rows_are_run_once_and_compared_on_the_same_episodes(base, tmp_path):
    pytest.importorskip("matplotlib")
    checkpoint = tmp_path / "base.safetensors"
    save_checkpoint(base, checkpoint, {})
    folder, keys = tmp_path / "rows", ("svp", "frozen")
    budget = Budget(steps=1, batch=2, episodes=3)
    told = []
    made = ablate(checkpoint, folder, rows=keys, budget=budget, log=told.append)
    assert told == ["row svp, seed 0", "row frozen, seed 0"]
    assert set(made.document["rows"]) == {"svp", "frozen"}
    assert made.document["table"][1]["against"] == "+ SVP (compact)"
    assert made.document["table"][1]["paper's"] == "-2.4"
    words = [
        "ablate", "--checkpoint", str(checkpoint), "--row", "svp", "--row", "frozen", "--steps",
        "1", "--batch", "2", "--episodes", "3", "-o", str(folder), "--json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("it trained again"))
        again = CliRunner().invoke(cli, words)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == made.document
    with pytest.raises(InputError, match="learning_rate"):
        ablate(checkpoint, folder, rows=keys, budget=replace(budget, learning_rate=0.5))
    with pytest.raises(InputError, match="no row none"):
        ablate(checkpoint, folder, rows=["none"])


def test_an_encoder_of_its_own_is_trained_once(base, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    checkpoint = tmp_path / "base.safetensors"
    save_checkpoint(base, checkpoint, {})
    budget = Budget(steps=1, batch=2, episodes=2, encoder_steps=2)
    seen = []
    run = run_row("encoder-64", 0, checkpoint, tmp_path / "rows", budget, seen.append)
    assert [(progress.step, progress.steps) for progress in seen] == [(1, 2), (2, 2), (1, 1)]
    kept = load_file(tmp_path / "rows" / "encoder-64-0" / ENCODER)
    torch.manual_seed(0)
    fresh = UinoFSS(ROWS["encoder-64"].config(base.config)).encoder.state_dict()
    assert {name: t.shape for name, t in kept.items()} == {n: t.shape for n, t in fresh.items()}
    assert not all(torch.equal(kept[name], fresh[name]) for name in fresh)
    (tmp_path / "rows" / "encoder-64-0" / RESULTS).unlink()
    monkeypatch.setattr(
        from_scratch, "train_from_scratch", lambda *_: pytest.fail("it trained the encoder again")
    )
    again = run_row("encoder-64", 0, checkpoint, tmp_path / "rows", budget)
    assert run_document(again)["miou"] == run_document(run)["miou"]


def test_several_seeds_stand_beside_each_other():
    def made(seed, shift):
        rng = np.random.default_rng(seed)
        truth = rng.integers(50, 100, 6)
        hit = truth - shift
        counts = np.stack([hit, truth, 1000 - truth, 1000 - hit], axis=1)
        return Run("m", ("a", "b"), (0, 1) * 3, counts, "same", 1.0)

    runs = {"ba-pcs": {0: made(0, 20), 1: made(0, 20)}, "svp": {0: made(0, 10), 1: made(0, 20)}}
    header, rows = table(runs)
    difference = rows[1][header.index("difference")]
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\], \+0\.0", difference)
    assert rows[0][header.index("difference")] == "-"
    page = "a\n<!-- ablation begins -->\nold\n<!-- ablation ends -->\n"
    renewed = renew(page, {"table": [dict(zip(header, row, strict=True)) for row in rows]})
    assert "old" not in renewed
    assert "| + SVP (compact) |" in renewed


def test_the_page_shows_the_data():
    document = json.loads((ROOT / "benchmarks/data/ablation.json").read_text("utf-8"))
    page = (ROOT / "docs/ablation.md").read_text("utf-8")
    assert renew(page, document) == page
    assert set(document["rows"]) == set(ROWS)
    assert document["budget"] == vars(Budget())
    assert document["checkpoint_sha256"] == sha256(ROOT / "uino_deploy/assets/tiny.safetensors")
    for row, (key, about) in zip(document["table"], ROWS.items(), strict=True):
        seeds = document["rows"][key].values()
        assert row["row"] == about.name
        assert float(row["mIoU"]) == pytest.approx(
            sum(run["miou"] for run in seeds) / len(seeds), abs=0.051
        )
