"""`uino-deploy evaluate`: verdicts, files, refusals."""

import json

import pytest
import torch
from click.testing import CliRunner

from tests.data.miniatures import make_folder, make_voc
from uino_deploy.cli._options import Settings
from uino_deploy.cli.evaluate import evaluate
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS


def write_model(path, seed):
    torch.manual_seed(seed)
    save_checkpoint(UinoFSS(UinoConfig.from_preset("tiny", "comp-star")).eval(), path, {})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with two checkpoints, a user's images, and VOC."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed in range(4):
        write_model(folder / f"fold{seed}.safetensors", seed)
    make_folder(folder / "mug")
    make_voc(folder / "voc", per_class=2)
    return folder


def run(*arguments):
    return CliRunner().invoke(evaluate, [str(each) for each in arguments], obj=Settings())


def on_mugs(place, source, *arguments):
    return run(place / source, "--dataset", "folder", "--data", place / "mug", "--episodes", 4,
               *arguments)  # fmt: skip


def test_the_document_holds_what_was_measured(place, tmp_path):
    path = tmp_path / "results.json"
    result = on_mugs(place, "fold0.safetensors", "--json", "-o", path)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert 0 <= document["miou"] <= 100
    assert document["passed"] is None
    assert list(document["per_class"]) == ["mug"]
    written = json.loads(path.read_text())
    assert {key: written[key] for key in document} == document
    assert len(written["runs"][0]["counts"]) == 4


def test_a_drop_fails_and_a_rise_passes(place):
    scores = {
        name: json.loads(on_mugs(place, f"{name}.safetensors", "--json").stdout)["miou"]
        for name in ("fold0", "fold1", "fold2")
    }
    low, *_, high = sorted(scores, key=scores.get)
    assert scores[high] - scores[low] > 0.02
    drop = ["--max-miou-drop", "0.01"]
    worse = on_mugs(place, f"{low}.safetensors", "--against", place / f"{high}.safetensors", *drop)
    assert worse.exit_code == 1
    assert worse.stdout.splitlines()[-1].startswith("FAILED: mIoU is ")
    better = on_mugs(place, f"{high}.safetensors", "--against", place / f"{low}.safetensors", *drop)
    assert better.exit_code == 0
    assert better.stdout.splitlines()[-1] == "PASSED"


def test_all_folds_take_a_checkpoint_each(place, tmp_path):
    result = run(
        place / "fold{fold}.safetensors", "--dataset", "pascal", "--data", place / "voc",
        "--fold", "all", "--episodes", 5, "--write-episodes", tmp_path / "list{fold}.jsonl",
        "--json", "-o", tmp_path / "all.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    folds = document["folds"]
    assert [each["model"] for each in folds] == [f"fold{i}.safetensors" for i in range(4)]
    assert document["miou"] == pytest.approx(sum(each["miou"] for each in folds) / 4, abs=2e-3)
    assert len((tmp_path / "list3.jsonl").read_text().splitlines()) == 6
    one = run(
        place / "fold3.safetensors", "--dataset", "pascal", "--data", place / "voc", "--fold", 3,
        "--episode-list", tmp_path / "list3.jsonl", "--against", tmp_path / "all.json", "--json",
    )  # fmt: skip
    assert one.exit_code == 0, one.output
    assert json.loads(one.stdout)["against"]["difference"] == 0


def test_what_cannot_be_asked_is_refused(place, tmp_path):
    there = tmp_path / "there.json"
    there.write_text("precious")
    result = on_mugs(place, "fold0.safetensors", "-o", there)
    assert isinstance(result.exception, OutputExists)
    assert there.read_text() == "precious"
    assert on_mugs(place, "fold0.safetensors", "--max-miou-drop", 1).exit_code == 2
    assert on_mugs(place, "fold0.safetensors", "--fold", "all").exit_code == 2
    missing = on_mugs(place, "none.safetensors")
    assert isinstance(missing.exception, InputError)
    no_data = run(place / "fold0.safetensors", "--dataset", "coco")
    assert isinstance(no_data.exception, InputError)
