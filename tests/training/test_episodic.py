"""Episodic training on data sets: trained and frozen parts, a kill, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.miniatures import make_folder, make_voc, write_jpeg
from uino_deploy.cli import train as command
from uino_deploy.config import VARIANTS, UinoConfig
from uino_deploy.data.folder import Folder
from uino_deploy.data.pascal import Pascal
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.images import IGNORED, preprocess_image
from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts
from uino_deploy.model.checkpoint import load_checkpoint, read_checkpoint_metadata, save_checkpoint
from uino_deploy.model.segmenter import UinoFSS, parameter_counts
from uino_deploy.training import train
from uino_deploy.training.augmentation import Change
from uino_deploy.training.episodic import LEARNING, EpisodicTraining, Judging
from uino_deploy.training.loop import TrainingLoop
from uino_deploy.training.processes import ALONE
from uino_deploy.training.runs import check_frozen, frozen_digest
from uino_deploy.training.schedule import RunOptions

ROOT = Path(__file__).resolve().parents[2]


def write_model(path, variant):
    torch.manual_seed(0)
    save_checkpoint(UinoFSS(UinoConfig.from_preset("tiny", variant)).eval(), path, {})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a checkpoint of each variant and a user's images."""
    folder = tmp_path_factory.mktemp("episodic")
    for variant in VARIANTS:
        write_model(folder / f"{variant}.safetensors", variant)
    make_folder(folder / "mug")
    return folder


def run(place, variant, output, steps=4, **more):
    """Train unjudged through the public function; `words` are the same for the command."""
    more.setdefault("judging", Judging(every=0))
    return train(
        assemble_from_checkpoint(place / f"{variant}.safetensors"),
        "folder",
        output,
        RunOptions(batch=4, lr=3e-3, warmup=1, save_every=2),
        data=place / "mug",
        fold=1,
        steps=steps,
        **more,
    )


def words(place, variant, output, *more, steps=4):
    return [
        "--dataset", "folder", "--data", str(place / "mug"), "--fold", "1", "--batch", "4",
        "--checkpoint", str(place / f"{variant}.safetensors"), "--steps", str(steps),
        "--warmup", "1", "--lr", "3e-3", "--save-every", "2", "--validate-every", "0",
        "-o", str(output), *more,
    ]  # fmt: skip


def invoke(*words):
    return CliRunner().invoke(command.train, [str(word) for word in words])


def changed_parts(before, after):
    one, two = load_checkpoint(before).state_dict(), load_checkpoint(after).state_dict()
    return {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_its_parts_and_no_other(place, tmp_path, variant):
    output = tmp_path / "run"
    result = run(place, variant, output, steps=2)
    before = place / f"{variant}.safetensors"
    assert changed_parts(before, output / "model.safetensors") == set(LEARNING[variant])
    counts = parameter_counts(load_checkpoint(before))
    assert result.parameters == sum(counts[part] for part in LEARNING[variant])
    provenance = read_checkpoint_metadata(output / "model.safetensors").provenance
    assert provenance["learned"] == list(LEARNING[variant])
    assert provenance["command"] == "uino-deploy train --dataset folder"


def test_the_command_prints_the_result(place, tmp_path):
    output = tmp_path / "run"
    result = invoke(*words(place, "comp-star", output, "--json", steps=1))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["checkpoint"] == str(output / "model.safetensors")
    assert document["learned"] == list(LEARNING["comp-star"])
    assert document["settings"] == json.loads((output / "run.json").read_text())
    assert {"parameters", "loss"} < document.keys()


def test_a_frozen_adapter_that_was_never_distilled_is_warned_of(place, tmp_path, caplog):
    assembly = assemble_from_parts(UinoConfig.from_preset("tiny", "comp-star"))
    options = RunOptions(batch=2, lr=1e-3)
    unjudged = Judging(every=0)
    train(
        assembly, "folder", tmp_path / "run", options, data=place / "mug", steps=1, judging=unjudged
    )
    assert "the adapter is frozen but was never distilled" in caplog.text


def test_comp_star_on_vit_b_learns_as_few_parameters_as_the_paper_says():
    with torch.device("meta"):
        counts = parameter_counts(UinoFSS(UinoConfig.from_preset("vitb14", "comp-star")))
    learned = sum(counts[part] for part in LEARNING["comp-star"])
    assert learned == 70_880
    assert f"{learned / 1e6:.2f} M" == "0.07 M"


def test_the_loss_falls_and_resuming_equals_not_stopping(place, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(place, "comp-star", whole, steps=12, train_adapter=True)
    losses = [float(row.split(",")[2]) for row in (whole / "log.csv").read_text().splitlines()[1:]]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.98 * sum(losses[:3])  # the decoder is random, and frozen

    steps = []

    def stop_after_seven(self, *_):
        steps.append(1)
        if len(steps) > 7:
            raise KeyboardInterrupt
        return original(self, *_)

    original = TrainingLoop._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_step", stop_after_seven)
        with pytest.raises(KeyboardInterrupt):
            run(place, "comp-star", stopped, steps=12, train_adapter=True)
    assert not (stopped / "model.safetensors").exists()
    run(place, "comp-star", stopped, steps=12, train_adapter=True, resume=True)
    one, two = (
        load_checkpoint(folder / "model.safetensors").state_dict() for folder in (whole, stopped)
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_two_processes_equal_one(place, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(place, "comp", one, steps=3, train_adapter=True)
    started = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "uino_deploy", "train",
        *words(place, "comp", two, "--train-adapter", steps=3),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(started, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [float(row.split(",")[2]) for row in (folder / "log.csv").read_text().splitlines()[1:]]
        for folder in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_a_change_of_what_is_frozen_is_found(place):
    model = load_checkpoint(place / "comp-star.safetensors")
    before = frozen_digest(model, ("prompt_generator",))
    with torch.no_grad():
        model.prompt_generator.similarity[0].bias += 1
    check_frozen(before, model, ("prompt_generator",))
    model.adapter.reduce_norm.running_mean[3] += 1e-6
    with pytest.raises(CheckFailed, match="frozen part"):
        check_frozen(before, model, ("prompt_generator",))


def test_a_sample_is_an_episode_of_the_base_classes(tmp_path):
    dataset = Pascal(make_voc(tmp_path, per_class=2), 0, "train")
    model = UinoFSS(UinoConfig.from_preset("tiny", "comp-star"))
    task = EpisodicTraining(model, LEARNING["comp-star"], dataset, 2, 4, 0, ALONE)
    values = set()
    for index in range(8):
        sample = task.sample(index)
        again = task.sample(index)
        assert sample.support.shape == (2, 4, 64, 128)
        assert sample.masks.shape == (2, 64)
        assert 1 in sample.truth
        values |= set(np.unique(sample.truth).tolist())
        assert 0 < sample.masks.max() <= 1
        for one, other in zip(sample, again, strict=True):
            np.testing.assert_array_equal(one, other)
    assert values == {0, 1, IGNORED}


def test_images_are_mirrored_with_their_masks(place):
    dataset = Folder(place / "mug")
    model = UinoFSS(UinoConfig.from_preset("tiny", "comp-star"))
    task = EpisodicTraining(model, LEARNING["comp-star"], dataset, 1, 4, 0, ALONE)
    mirror = Change(mirror=True)
    image = mirror.image(dataset.image("images/001.jpg"))
    mask = mirror.mask(dataset.mask("images/001.jpg", 0))
    np.testing.assert_array_equal(image, dataset.image("images/001.jpg")[:, ::-1])
    np.testing.assert_array_equal(mask, dataset.mask("images/001.jpg", 0)[:, ::-1])
    straight = EpisodicTraining(model, LEARNING["comp-star"], dataset, 1, 4, 0, ALONE, mirror=False)
    samples = [(task.sample(index), straight.sample(index)) for index in range(6)]
    assert {torch.equal(one.early, other.early) for one, other in samples} == {True, False}
    straight = preprocess_image(dataset.image("images/001.jpg"), 112)
    assert not np.allclose(preprocess_image(image, 112), straight)


def test_a_share_of_the_queries_lacks_the_target(place, tmp_path):
    root = make_folder(tmp_path, names=("cup", "mug"))
    for index in range(10):  # otherwise the mugs are the cups
        write_jpeg(root / f"mug/images/{index:03d}.jpg", 100 + index)
    dataset = Folder(root)
    model = UinoFSS(UinoConfig.from_preset("tiny", "comp-star"))
    tasks = [
        EpisodicTraining(model, LEARNING["comp-star"], dataset, 1, 4, 0, ALONE, absent=share)
        for share in (0.0, 0.5)
    ]
    pairs = [[task.sample(index) for task in tasks] for index in range(12)]
    lacking = [not (with_absent.truth == 1).any() for _, with_absent in pairs]
    assert 2 < sum(lacking) < 10
    for (always, sometimes), absent in zip(pairs, lacking, strict=True):
        assert (always.truth == 1).any()
        assert np.array_equal(always.support, sometimes.support)
        assert np.array_equal(always.truth, sometimes.truth) != absent


def test_one_class_has_no_image_without_it(place, tmp_path):
    result = run(place, "comp-star", tmp_path / "run", steps=1)
    assert result.settings["absent"] == 0
    with pytest.raises(InputError, match="every image shows the target"):
        run(place, "comp-star", tmp_path / "other", steps=1, absent=0.2)
    assert not (tmp_path / "other").exists()


def test_what_does_not_go_together_is_refused(place, tmp_path):
    output = tmp_path / "x"
    assert invoke("-o", output).exit_code == 2
    assert invoke("--recipe", "demo", "--dataset", "folder", "-o", output).exit_code == 2
    result = invoke("--recipe", "demo", "-o", output, "--lr", "1")
    assert result.exit_code == 2
    assert "--lr needs --dataset" in result.output
    no_start = ["--dataset", "folder", "--data", place / "mug", "-o", output]
    assert "give either --checkpoint or --preset" in invoke(*no_start).output
    both = [*no_start, "--checkpoint", place / "comp.safetensors", "--variant", "full"]
    assert invoke(*both).exit_code == 2
    missing = invoke(*no_start[:3], tmp_path / "none", "-o", output, "--preset", "tiny")
    assert isinstance(missing.exception, InputError)
    assert not output.exists()
