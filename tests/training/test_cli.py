"""`uino-deploy train`: its files, its refusals, and the state after an interruption."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from uino_deploy.cli.train import train
from uino_deploy.errors import OutputExists
from uino_deploy.model.checkpoint import load_checkpoint, read_checkpoint_metadata
from uino_deploy.training import recipe as recipes
from uino_deploy.training.loop import TrainingLoop


@pytest.fixture(autouse=True)
def two_episodes_a_batch(monkeypatch):
    from dataclasses import replace

    small = replace(recipes.RECIPES["demo"], episodes=2, judged_on=3)
    monkeypatch.setitem(recipes.RECIPES, "demo", small)


def run(*arguments):
    return CliRunner().invoke(train, arguments)


def test_every_recipe_can_be_named():
    (option,) = (each for each in train.params if each.name == "recipe_name")
    assert list(option.type.choices) == list(recipes.RECIPES)


def test_a_smoke_training_writes_a_checkpoint_that_loads(tmp_path):
    path = tmp_path / "smoke.safetensors"
    result = run("--recipe", "demo", "-o", str(path), "--max-steps", "1", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["checkpoint"] == str(path)
    assert document["passed"] is None  # it was not evaluated
    assert "PASSED" not in result.output
    assert "not evaluated" in result.output
    model = load_checkpoint(path)
    assert model.config.preset == "tiny"
    provenance = read_checkpoint_metadata(path).provenance
    assert provenance["seed"] == 3
    assert {stage["steps"] for stage in provenance["recipe"]["stages"]} == {1}
    assert provenance["measured"] == {}
    assert provenance["versions"]["torch"]


def test_a_model_below_the_gate_is_kept_and_fails(tmp_path, monkeypatch):
    path = tmp_path / "weak.safetensors"
    short = recipes.RECIPES["demo"].shortened(1)
    monkeypatch.setitem(recipes.RECIPES, "demo", short)
    result = run("--recipe", "demo", "-o", str(path))
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("FAILED: mIoU of held-out is ")
    assert set(read_checkpoint_metadata(path).provenance["measured"]) == {"held-out", "digits"}


def test_a_model_that_passes_was_judged(tmp_path, monkeypatch):
    short = replace(recipes.RECIPES["demo"].shortened(1), required_miou={"held-out": 0.0})
    monkeypatch.setitem(recipes.RECIPES, "demo", replace(short, judged_on=80))
    result = run("--recipe", "demo", "-o", str(tmp_path / "judged.safetensors"))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "PASSED"
    assert "not evaluated" not in result.output


def test_an_existing_output_is_refused_before_the_training(tmp_path, monkeypatch):
    path = tmp_path / "there.safetensors"
    path.write_bytes(b"precious")
    monkeypatch.setattr(TrainingLoop, "run", lambda *_: pytest.fail("it trained"))
    result = run("--recipe", "demo", "-o", str(path))
    assert isinstance(result.exception, OutputExists)
    assert path.read_bytes() == b"precious"


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "run", interrupted)
    result = run("--recipe", "demo", "-o", str(tmp_path / "new.safetensors"))
    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_the_help_shows_an_example_and_needs_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from uino_deploy.cli.train import train;"
        "print(CliRunner().invoke(train, ['--help']).output); print('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "uino-deploy train --recipe demo -o tiny.safetensors" in shown
    assert shown.splitlines()[-1] == "False"
