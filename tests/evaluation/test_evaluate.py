"""The evaluation from Python and from the command line: verdicts, files, refusals."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.miniatures import make_folder, make_voc
from uino_deploy.cli import cli, main
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.evaluation import evaluate
from uino_deploy.evaluation.segmenters import open_segmenter as real
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


def on_mugs(place, source, **options):
    return evaluate(place / source, "folder", data=place / "mug", episodes=4, **options)


def test_the_document_holds_what_was_measured(place, tmp_path):
    path = tmp_path / "results.json"
    report = on_mugs(place, "fold0.safetensors", output=path)
    document = report.document
    assert 0 <= document["miou"] <= 100
    assert document["passed"] is None
    assert list(document["per_class"]) == ["mug"]
    written = json.loads(path.read_text())
    assert {key: written[key] for key in document} == document
    assert len(written["runs"][0]["counts"]) == 4
    assert report.runs[None].evaluation.miou == pytest.approx(document["miou"], abs=1e-3)


def test_the_command_prints_the_report(place):
    words = ["evaluate", place / "fold0.safetensors", "--dataset", "folder", "--data",
             place / "mug", "--episodes", 4]  # fmt: skip
    report = on_mugs(place, "fold0.safetensors")
    as_json = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert as_json.exit_code == 0, as_json.output
    printed = json.loads(as_json.stdout)
    assert {**printed, "seconds": 0} == {**report.document, "seconds": 0}
    text = CliRunner().invoke(cli, [*map(str, words)])
    assert text.exit_code == 0, text.output
    assert report.sentences[0] in text.stdout
    assert "mug" in text.stdout.splitlines()[-1]


def test_a_drop_fails_and_a_rise_passes(place):
    scores = {
        name: on_mugs(place, f"{name}.safetensors").document["miou"]
        for name in ("fold0", "fold1", "fold2")
    }
    low, *_, high = (place / f"{name}.safetensors" for name in sorted(scores, key=scores.get))
    assert max(scores.values()) - min(scores.values()) > 0.02
    worse = on_mugs(place, low, against=high, max_miou_drop=0.01)
    assert worse.document["passed"] is False
    assert worse.failures[0].startswith("mIoU is ")
    better = on_mugs(place, high, against=low, max_miou_drop=0.01)
    assert better.document["passed"] is True
    assert better.failures == []


def test_the_command_ends_with_the_verdict(place):
    source = place / "fold0.safetensors"
    words = [source, "--dataset", "folder", "--data", place / "mug", "--episodes", 4]
    words += ["--against", source, "--max-miou-drop", 0]
    passed = CliRunner().invoke(cli, ["evaluate", *map(str, words)])
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.splitlines()[-1] == "PASSED"


def test_all_folds_take_a_checkpoint_each(place, tmp_path):
    report = evaluate(
        place / "fold{fold}.safetensors", "pascal", data=place / "voc", fold="all", episodes=5,
        write_episodes=tmp_path / "list{fold}.jsonl", output=tmp_path / "all.json",
    )  # fmt: skip
    folds = report.document["folds"]
    assert [each["model"] for each in folds] == [f"fold{i}.safetensors" for i in range(4)]
    mean = sum(each["miou"] for each in folds) / 4
    assert report.document["miou"] == pytest.approx(mean, abs=2e-3)
    assert len(report.sentences) == 5
    assert "simple method" in report.sentences[4]
    assert report.class_table is None
    assert len((tmp_path / "list3.jsonl").read_text().splitlines()) == 6
    one = evaluate(
        place / "fold3.safetensors", "pascal", data=place / "voc", fold=3,
        episode_list=tmp_path / "list3.jsonl", against=tmp_path / "all.json",
    )  # fmt: skip
    assert one.document["against"]["difference"] == 0
    assert one.document["seed"] is None


def test_classes_without_images_are_told(tmp_path, place):
    root = make_voc(tmp_path, per_class=2)
    listing = root / "VOC2012/ImageSets/Segmentation/val.txt"
    kept = [name for name in listing.read_text().split() if "_val_02_" in name]
    listing.write_text("\n".join(kept))
    told = []
    source = place / "fold0.safetensors"
    evaluate(source, "pascal", data=root, fold=0, episodes=2, warn=told.append)
    assert told == ["no image of aeroplane, boat, bottle: left out"]


def test_what_cannot_be_asked_is_refused(place, tmp_path):
    there = tmp_path / "there.json"
    there.write_text("precious")
    with pytest.raises(OutputExists):
        on_mugs(place, "fold0.safetensors", output=there)
    assert there.read_text() == "precious"
    for source, options, message in [
        ("fold0.safetensors", {"max_miou_drop": 1}, "--against"),
        ("fold0.safetensors", {"max_miou_drop": math.nan, "against": there}, "finite"),
        ("fold0.safetensors", {"fold": "all"}, "for pascal and coco, not folder"),
        ("fold0.safetensors", {"fold": "all", "episode_list": there}, "belongs to one fold"),
        ("none.safetensors", {}, "none.safetensors"),
    ]:
        with pytest.raises(InputError, match=message):
            on_mugs(place, source, **options)
    with pytest.raises(InputError, match="needs its folder"):
        evaluate(place / "fold0.safetensors", "coco")


def test_the_command_refuses_with_code_2(place, capsys):
    source = str(place / "fold0.safetensors")
    with pytest.raises(SystemExit) as left:
        main(["evaluate", source, "--dataset", "demo", "--max-miou-drop", "1"])
    assert left.value.code == 2
    assert "--against" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "x", "--dataset", "demo", "--against", "y", "--max-miou-drop"],
        ["compare", "x", "y", "--margin"],
        ["benchmark", "x", "-o", "y", "--duration"],
        ["selftest", "--minutes"],
        ["train", "-o", "x", "--lr"],
        ["ablate", "--checkpoint", "x", "-o", "y", "--lr"],
    ],
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_no_comparison_can_fail_is_refused(words, number, capsys):
    with pytest.raises(SystemExit) as left:
        main([*words, number])
    assert left.value.code == 2
    assert f"{number} is not a finite number" in capsys.readouterr().err


@pytest.fixture(scope="module")
def wrong(place, tmp_path_factory):
    """Return a folder of what no model can be compared with."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "mug").mkdir()
    (folder / "damaged.json").write_text("{")
    (folder / "damaged.safetensors").write_bytes(b"x" * 99)
    on_mugs(place, "fold1.safetensors", output=folder / "other.json", seed=9)
    results = json.loads((folder / "other.json").read_text())
    results["runs"][0]["fold"] = 1
    (folder / "of-fold-1.json").write_text(json.dumps(results))
    return folder


class Unused:
    """A model that must not run: what is wrong with the arguments is seen before it."""

    def __init__(self):
        self.asked = 0

    def segment(self, _shots, query):
        self.asked += 1
        return np.zeros(query.shape[:2], np.uint8)


@pytest.mark.parametrize(
    ("against", "words"),
    [
        ("nothing.safetensors", "nothing.safetensors does not exist"),
        ("damaged.json", "is not a results file"),
        ("damaged.safetensors", "not a uino-deploy checkpoint"),
        ("mug", "is not a bundle"),
        ("of-fold-1.json", "has no results for fold None"),
        ("other.json", "was not run on the same episodes"),
    ],
)
def test_what_to_compare_with_is_checked_before_the_work(
    place, wrong, tmp_path, monkeypatch, against, words
):
    unused = Unused()
    monkeypatch.setattr(
        "uino_deploy.evaluation.evaluator.open_segmenter",
        lambda path, load: unused.segment if path.name == "fold0.safetensors" else real(path, load),
    )
    with pytest.raises(InputError, match=words):
        on_mugs(place, "fold0.safetensors", against=wrong / against, output=tmp_path / "r.json")
    assert unused.asked == 0
    assert not (tmp_path / "r.json").exists()


def test_a_later_folds_model_is_looked_for_before_the_first_fold(place):
    for fold in (0, 1, 3):
        (place / f"gone{fold}.safetensors").touch()
    with pytest.raises(InputError, match=r"gone2\.safetensors does not exist"):
        evaluate(place / "gone{fold}.safetensors", "pascal", data=place / "voc", fold="all")


def test_an_output_is_no_input_and_no_other_output(place, wrong, tmp_path):
    mine = Path(shutil.copy(wrong / "other.json", tmp_path / "mine.json"))
    before = mine.read_bytes()
    with pytest.raises(OutputExists, match=r"mine\.json is also an input"):
        on_mugs(place, "fold0.safetensors", against=mine, output=mine, force=True)
    assert mine.read_bytes() == before
    two = tmp_path / "two.json"
    with pytest.raises(InputError, match="two outputs are the same file"):
        on_mugs(place, "fold0.safetensors", write_episodes=two, output=two)
    assert not two.exists()
