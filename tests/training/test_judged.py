"""A judged training on a user's images: kept tokens, validation, early stop, results page."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.miniatures import make_folder
from uino_deploy.cli import train as command
from uino_deploy.config import UinoConfig
from uino_deploy.data.folder import Folder
from uino_deploy.data.parts import hold_out
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.model.assembly import assemble_from_checkpoint
from uino_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training import episodic, train
from uino_deploy.training.augmentation import Change, draw_change
from uino_deploy.training.episodic import Judging
from uino_deploy.training.judgement import TRAINED, Judgement
from uino_deploy.training.loop import TrainingLoop
from uino_deploy.training.reporting import Silence
from uino_deploy.training.run_folder import load_state, read_log
from uino_deploy.training.schedule import RunOptions
from uino_deploy.training.token_cache import TokenSource, place_to_keep, tokens_bytes


class Heard(Silence):
    """Keeps what a training says."""

    def __init__(self):
        self.lines = []

    def log(self, message):
        self.lines.append(message)

    warn = log


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a checkpoint and a user's images."""
    folder = tmp_path_factory.mktemp("judged")
    torch.manual_seed(0)
    model = UinoFSS(UinoConfig.from_preset("tiny", "comp-star")).eval()
    save_checkpoint(model, folder / "model.safetensors", {})
    make_folder(folder / "mug")
    return folder


def run(place, output, steps=6, judging=Judging(every=2, patience=0), **more):  # noqa: B008
    return train(
        assemble_from_checkpoint(place / "model.safetensors"),
        "folder",
        output,
        RunOptions(batch=2, lr=3e-3, warmup=1, save_every=3),
        data=place / "mug",
        steps=steps,
        judging=judging,
        **more,
    )


def weights(folder):
    return load_checkpoint(folder / "model.safetensors").state_dict()


def last_weights(folder):
    """Return what the last step left; the checkpoint has the best state instead."""
    return load_state(folder).model


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A judged training that nobody stopped: its result, its folder and what it said."""
    folder, heard = tmp_path_factory.mktemp("whole") / "run", Heard()
    return run(place, folder, reporter=heard), folder, heard.lines


def test_kept_tokens_change_nothing(place, whole, tmp_path):
    result, folder, lines = whole
    kept = sorted((folder / "tokens").glob("*/*.safetensors"))
    assert 0 < len(kept) <= 20  # each image, and its mirror image
    said = re.search(r"tokens of 20 images take ([\d.]+) MB: kept in", "\n".join(lines))
    assert float(said[1]) == pytest.approx(20 * tokens_bytes(result_config(place)) / 1e6, rel=0.01)

    without = run(place, tmp_path / "without", cache_limit=0)
    assert not (tmp_path / "without" / "tokens").exists()
    again = run(place, tmp_path / "again", cache=folder / "tokens")
    assert same(last_weights(folder), last_weights(tmp_path / "without"))
    assert same(last_weights(folder), last_weights(tmp_path / "again"))
    assert not same(last_weights(folder), load_state(folder).best.model)
    assert result.judgement == without.judgement == again.judgement


def result_config(place):
    return load_checkpoint(place / "model.safetensors").config


def test_a_damaged_file_of_tokens_is_computed_again(place, tmp_path):
    model = load_checkpoint(place / "model.safetensors").requires_grad_(False)
    image = Folder(place / "mug").image("images/001.jpg")
    heard = Heard()

    def source():  # as in another process: nothing is remembered
        return TokenSource(model.encoder, model.config, "fp32", tmp_path, heard)

    first = source().tokens("a", lambda: image)
    (path,) = tmp_path.glob("*/*.safetensors")
    good = path.read_bytes()
    assert abs(len(good) - tokens_bytes(model.config)) < 1000
    assert torch.equal(source().tokens("a", lambda: image).deep, first.deep)
    assert heard.lines == []
    for bad in (good[:-1], b"", good[:-2] + bytes(2), good.replace(b"uino-tokens", b"uino-tokenz")):
        path.write_bytes(bad)
        again = source().tokens("a", lambda: image)
        assert torch.equal(again.early, first.early)
        assert path.read_bytes() == good
    assert len(heard.lines) == 4
    assert all("damaged" in line and "computed again" in line for line in heard.lines)
    # Other pixels, and another encoder, have files of their own.
    source().tokens("b", lambda: image[::-1])
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    with torch.no_grad():
        model.encoder.norm.bias += 1
    assert not torch.equal(source().tokens("a", lambda: image).early, first.early)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_image_whose_tokens_are_kept_is_not_read_again(place, tmp_path):
    model = load_checkpoint(place / "model.safetensors").requires_grad_(False)
    image = Folder(place / "mug").image("images/001.jpg")
    source = TokenSource(model.encoder, model.config, "fp32", tmp_path, Silence())
    first = source.tokens("a", lambda: image)
    assert torch.equal(source.tokens("a", lambda: pytest.fail("read again")).early, first.early)


def test_what_does_not_fit_is_not_kept(place, tmp_path, monkeypatch):
    heard, config = Heard(), result_config(place)
    assert place_to_keep(config, 10, tmp_path / "new" / "er", 10**9, heard) == tmp_path / "new/er"
    assert place_to_keep(config, 10**6, tmp_path, 10**9, heard) is None
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    assert place_to_keep(config, 10, tmp_path, 10**9, heard) is None
    assert "over --cache-limit, 1 GB" in heard.lines[1]
    assert "not kept, so every step runs the encoder" in heard.lines[2]


def test_images_or_classes_are_held_out(tmp_path):
    halves = hold_out(Folder(make_folder(tmp_path / "one")), 1)
    assert halves.words == "2 of 10 images"
    assert list(halves.held_out.images(0)) == ["images/000.jpg", "images/005.jpg"]
    assert not set(halves.held_out.images(0)) & set(halves.learnt.images(0))
    assert hold_out(Folder(make_folder(tmp_path / "few", 5)), 1) is None
    names = tuple(f"c{number:02d}" for number in range(11))
    halves = hold_out(Folder(make_folder(tmp_path / "many", 2, names)), 1)
    assert halves.words == "3 of 11 classes"
    assert halves.held_out.shown_labels() == [0, 5, 10]
    assert halves.learnt.shown_labels() == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_resumed_training_equals_an_uninterrupted_one(place, whole, tmp_path, monkeypatch):
    result, folder, _ = whole
    original, steps = TrainingLoop._step, []

    def killed_in_the_fifth(self, *given):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(self, *given)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_step", killed_in_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            run(place, stopped)
    resumed = run(place, stopped, resume=True)
    assert same(weights(folder), weights(stopped))
    assert same(last_weights(folder), last_weights(stopped))
    assert (folder / "log.csv").read_text() == (stopped / "log.csv").read_text()
    assert resumed.judgement == result.judgement
    assert (resumed.best_step, resumed.steps) == (result.best_step, result.steps)


def scored(monkeypatch, scores):
    """Let the validation say these mIoUs, in their order."""
    left = iter(scores)
    monkeypatch.setattr(episodic, "validation_miou", lambda *_: next(left))


def test_training_stops_early_and_keeps_the_best_state(place, tmp_path, monkeypatch):
    scored(monkeypatch, [5.0, 20.0, 19.0, 20.0])
    result = run(place, tmp_path / "run", steps=40, judging=Judging(every=1, patience=2))
    assert (result.steps, result.best_step) == (3, 1)
    rows = read_log(tmp_path / "run")
    assert [(row.step, row.miou) for row in rows] == [(0, 5.0), (1, 20.0), (2, 19.0), (3, 20.0)]
    assert rows[0].loss is None
    state = load_state(tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "model.safetensors").prompt_generator.state_dict()
    best = {name.removeprefix("prompt_generator."): each for name, each in state.best.model.items()}
    last = {name.removeprefix("prompt_generator."): each for name, each in state.model.items()}
    assert same(best, trained)
    assert not same(last, trained)


def test_a_training_that_only_harms_keeps_its_start(place, tmp_path, monkeypatch):
    scored(monkeypatch, [30.0, 20.0])
    result = run(place, tmp_path / "run", steps=2)
    assert result.best_step == 0
    assert same(
        weights(tmp_path / "run"), load_checkpoint(place / "model.safetensors").state_dict()
    )
    assert result.judgement["before"]["difference"] == 0


def made_up(model, baseline):
    """Return a judgement of ten episodes by their intersections out of 100 pixels."""
    counts = [[[each, 100, 100, 200]] * 10 for each in (model, baseline)]
    ours, theirs = (
        Run(name, ("mug",), (0,) * 10, np.array(each), "e", 1.0)
        for name, each in zip((TRAINED, "simple"), counts, strict=True)
    )
    from uino_deploy.evaluation.report import compare, run_document

    beside = {"baselines": {"simple": compare(ours, theirs)}}
    return Judgement({}, {**run_document(ours), **beside})


def test_a_model_beats_the_simple_methods_only_for_certain():
    assert made_up(60, 40).beats_baselines
    assert not made_up(40, 40).beats_baselines
    assert not made_up(30, 40).beats_baselines
    assert not Judgement({}, {"baselines": {}}).beats_baselines
    assert made_up(30, 40).sentence == ("mIoU 30.0 against 40.0 by simple: -10.0 [-10.0, -10.0]")


def test_the_command_and_the_page_say_in_red_that_the_model_is_no_better(place, tmp_path):
    words = [
        "--dataset", "folder", "--data", place / "mug", "--checkpoint", place / "model.safetensors",
        "--steps", 2, "--batch", 2, "-o", tmp_path / "run",
    ]  # fmt: skip
    done = CliRunner().invoke(command.train, [str(word) for word in words], color=True)
    assert done.exit_code == 0, done.output
    assert "\x1b[31m\x1b[1mDOES NOT BEAT THE SIMPLE METHODS" in done.stdout
    assert "  to try: " in done.stdout
    for name in ("mark everything", "colour histogram", "prototypes", "before training"):
        assert name in done.stdout
    page = (tmp_path / "run" / "results.html").read_text(encoding="utf-8")
    assert '<div class="verdict failed"><b>DOES NOT BEAT THE SIMPLE METHODS</b>' in page
    assert ".failed { background: var(--failed); }" in page
    assert page.count("<svg ") == 3
    assert "The worst" in page
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert document["beats_baselines"] is False
    assert "It chose the state and judges it too" in page
    assert "judged on 2 of 10 images, " in done.stdout

    again = [
        *words[:-1],
        tmp_path / "fold",
        "--fold",
        1,
        "--json",
        "--cache",
        tmp_path / "run/tokens",
    ]
    done = CliRunner().invoke(command.train, [str(word) for word in again])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["beats_baselines"] is False
    assert document["advice"]
    assert document["judgement"]["held_out"] == "2 images of fold 1"
    page = (tmp_path / "fold" / "results.html").read_text(encoding="utf-8")
    assert "which neither taught the model nor chose its state" in page


def test_a_new_run_in_the_folder_takes_the_old_results_away(place, tmp_path):
    run(place, tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "results.html").exists()
    run(place, tmp_path / "run", steps=1, judging=Judging(every=0), force=True)
    assert not (tmp_path / "run" / "results.html").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "tokens").exists()


def test_too_few_images_are_not_judged_unless_asked(place, tmp_path):
    data, heard = make_folder(tmp_path / "few", 4), Heard()
    start = assemble_from_checkpoint(place / "model.safetensors")
    options = RunOptions(batch=1, lr=1e-3)
    result = train(start, "folder", tmp_path / "a", options, data=data, steps=1, reporter=heard)
    assert result.beats_baselines is None
    assert any("too few images" in line for line in heard.lines)
    with pytest.raises(InputError, match="too few images"):
        train(
            start, "folder", tmp_path / "b", options, data=data, steps=1, judging=Judging(every=1)
        )
    with pytest.raises(InputError, match="is drawn"):
        train(start, "demo", tmp_path / "b", options, steps=1, judging=Judging(every=1))
    assert not (tmp_path / "b").exists()


def test_a_window_holds_the_whole_object_and_more():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 0:30] = 1
    image = np.dstack([mask * 100] * 3)
    for seed in range(50):
        change = draw_change(np.random.default_rng(seed), seed % 2 == 1, mask)
        cut, seen = change.mask(mask), change.image(image)
        assert cut.sum() == mask.sum()
        assert (cut == 0).any()
        assert np.array_equal(seen[..., 0] > 0, cut > 0)
    assert np.array_equal(Change().image(image), image)
    empty = draw_change(np.random.default_rng(0), False, np.zeros((4, 4), np.uint8))
    assert empty.window is None


def test_augmented_images_are_not_kept(place, tmp_path):
    result = run(place, tmp_path / "run", steps=1, judging=Judging(every=0), augment=True)
    assert result.settings["augment"]
    assert not (tmp_path / "run" / "tokens").exists()
