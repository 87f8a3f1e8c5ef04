"""Distillation with a small teacher: the loss falls, the cache is checked, a kill is harmless."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.data.miniatures import write_jpeg
from tests.model.test_sam_encoder import filled, official_file
from uino_deploy.cli import distill as command
from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.images import load_image
from uino_deploy.model.assembly import assemble_from_checkpoint
from uino_deploy.model.checkpoint import (
    load_checkpoint,
    read_checkpoint_metadata,
    save_checkpoint,
)
from uino_deploy.model.sam_encoder import SamEncoderConfig
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training import distill
from uino_deploy.training.distillation import list_images, shuffled, stage_sizes
from uino_deploy.training.schedule import RunOptions
from uino_deploy.training.teacher import Teacher, prepare, spread

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = SamEncoderConfig(32, 2, 2, (1,), window=3, image_size=128, embedding=64)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a small teacher, a small student and ten smooth pictures."""
    folder = tmp_path_factory.mktemp("distill")
    official_file(filled(SMALL, seed=3), folder / "sam.pth")
    torch.manual_seed(0)
    save_checkpoint(UinoFSS(UinoConfig.from_preset("tiny")).eval(), folder / "tiny.safetensors", {})
    rng = np.random.default_rng(0)
    for index in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        path = folder / "photos" / f"{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((60, 44), Image.Resampling.BICUBIC).save(path)
    return folder


def run(place, output, seed=0, sam="sam.pth", **more):
    """Distil through the public function; `words` are the same for the command."""
    return distill(
        assemble_from_checkpoint(place / "tiny.safetensors"),
        place / "photos",
        place / sam,
        output,
        RunOptions(batch=4, lr=3e-3, warmup=2, save_every=2, seed=seed),
        steps=6,
        cache=place / "embeddings",
        **more,
    )


def words(place, output, *more):
    return [
        "--images", str(place / "photos"), "--checkpoint", str(place / "tiny.safetensors"),
        "--sam-checkpoint", str(place / "sam.pth"), "--cache", str(place / "embeddings"),
        "--steps", "6", "--batch", "4", "--warmup", "2", "--lr", "3e-3", "--save-every", "2",
        "-o", str(output), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(place):
    """A distillation that nobody stopped."""
    output = place / "whole"
    return output, run(place, output)


def test_sizes_grow_from_coarse_to_fine():
    assert stage_sizes(UinoConfig.from_preset("vitb14")) == (126, 252, 518)
    assert stage_sizes(UinoConfig.from_preset("tiny")) == (28, 56, 112)


def test_the_loss_falls_and_only_the_adapter_changes(place, whole):
    output, result = whole
    rows = [row.split(",") for row in (output / "log.csv").read_text().splitlines()[1:]]
    assert len(rows) == 18
    assert result.checkpoint == output / "model.safetensors"
    assert result.images == 10
    assert result.losses[2] < 0.7 * float(rows[0][2])
    before = load_checkpoint(place / "tiny.safetensors").state_dict()
    after = load_checkpoint(output / "model.safetensors").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"adapter"}
    provenance = read_checkpoint_metadata(output / "model.safetensors").provenance
    assert provenance["learned"] == ["adapter"]
    assert provenance["settings"]["sizes"] == [28, 56, 112]


def test_the_command_goes_on_and_prints_the_result(whole, place):
    output, result = whole
    invoked = CliRunner().invoke(command.distill, words(place, output, "--resume", "--json"))
    assert invoked.exit_code == 0, invoked.output
    document = json.loads(invoked.stdout)
    assert document == json.loads(json.dumps(asdict(result), default=str))


def test_a_killed_run_goes_on_to_the_same_result(place, whole, tmp_path):
    output = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "uino_deploy", "distill", *words(place, output)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output / "state.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "model.safetensors").exists() or process.returncode == 0
    run(place, output, resume=True)
    expected = load_checkpoint(whole[0] / "model.safetensors").state_dict()
    found = load_checkpoint(output / "model.safetensors").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_two_processes_equal_one(place, whole, tmp_path):
    output = tmp_path / "two"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        "-m", "uino_deploy", "distill", *words(place, output),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = load_checkpoint(whole[0] / "model.safetensors").state_dict()
    found = load_checkpoint(output / "model.safetensors").state_dict()
    start = load_checkpoint(place / "tiny.safetensors").state_dict()
    for name, tensor in expected.items():
        # Sums in another order; Adam's first steps amplify it where a gradient is near nothing.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-3, msg=name)
    moved = torch.cat(
        [(expected[n] - start[n]).float().flatten() for n in expected if "adapter" in n]
    )
    apart = torch.cat(
        [(expected[n] - found[n]).float().flatten() for n in expected if "adapter" in n]
    )
    assert apart.norm() < 1e-2 * moved.norm()
    one, two = ((path / "log.csv").read_text().splitlines() for path in (whole[0], output))
    losses = [[float(row.split(",")[2]) for row in rows[1:]] for rows in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_resuming_with_other_options_or_without_asking_is_refused(place, whole):
    output, _ = whole
    with pytest.raises(OutputExists):
        run(place, output)
    with pytest.raises(InputError, match="seed"):
        run(place, output, seed=9, resume=True)


def test_a_teacher_of_other_channels_is_refused(place, tmp_path):
    wide = official_file(
        filled(SamEncoderConfig(32, 2, 2, (1,), 3, 128, embedding=32), 1), tmp_path / "wide.pth"
    )
    with pytest.raises(InputError, match="32 channels, the adapter's 64"):
        run(place, tmp_path / "run", sam=wide)


def test_sams_preprocessing_by_hand():
    image = np.full((50, 100, 3), 128, np.uint8)
    prepared = prepare(image, 64)
    assert prepared.pixels.shape == (3, 64, 64)
    assert prepared.covered == (0.5, 1.0)
    np.testing.assert_allclose(prepared.pixels[0, :32], (128 - 123.675) / 58.395, rtol=1e-5)
    assert not prepared.pixels[:, 32:].any()


def test_the_covered_part_is_spread_over_the_grid():
    plane = torch.zeros(1, 2, 8, 8)
    plane[..., :4, :] = torch.arange(4.0)[:, None]  # rows 0 to 3 are the image
    plane[..., 4:, :] = 99
    spread_plane = spread(plane, (0.5, 1.0))
    assert spread_plane.shape == plane.shape
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    torch.testing.assert_close(spread_plane[0, 0, :7, 3], expected)
    assert spread(plane, (1.0, 1.0)) is plane


def test_embeddings_are_kept_and_checked(place, tmp_path, monkeypatch):
    photo = tmp_path / "photo.jpg"
    write_jpeg(photo, 5)
    teacher = Teacher(place / "sam.pth", tmp_path / "cache", CPU)
    first = teacher.embedding(photo)
    (file,) = teacher.folder.iterdir()
    asked = []
    original = Teacher._embed
    monkeypatch.setattr(Teacher, "_embed", lambda self, i: asked.append(1) or original(self, i))
    again = Teacher(place / "sam.pth", tmp_path / "cache", CPU)
    np.testing.assert_array_equal(again.embedding(photo), first)
    assert asked == []
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)  # a flipped bit, a torn file, another image's file
    for damage in (bytes(data), file.read_bytes()[:100], b""):
        file.write_bytes(damage)
        np.testing.assert_array_equal(again.embedding(photo), first)
    assert len(asked) == 3
    other = official_file(filled(SMALL, seed=4), tmp_path / "other.pth")
    stranger = Teacher(other, tmp_path / "cache", CPU)
    assert stranger.folder != teacher.folder
    assert not np.allclose(stranger.embedding(photo), first)
    assert first.shape == (64, 8, 8)
    assert load_image(photo).shape == (40, 60, 3)


def test_images_are_listed_by_path_and_thinned_evenly(place, tmp_path):
    found = list_images(place / "photos")
    assert len(found) == 10
    assert found == sorted(found)
    assert list_images(place / "photos", 5) == found[::2]
    with pytest.raises(InputError, match="contains no image"):
        list_images(tmp_path)


def test_every_pass_shows_everything_once():
    seen = list(shuffled(3, 10, 0, 30))
    assert [sorted(seen[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert seen[:10] != seen[10:20]
    assert list(shuffled(3, 10, 7, 9)) == seen[7:16]
