"""The commands under attack: their words, and what the product's own readers make of an output."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.support import Support
from uino_deploy.evaluation.results import read_runs
from uino_deploy.files import sha256
from uino_deploy.letters import draw_letter
from uino_deploy.selftest.setting import CHECKPOINT

# What an output holds, for comparison; None where there is no finished output.
Content = Any


@dataclass(frozen=True)
class Command:
    """A command and its output.

    Attributes:
        name: as the summary shows it.
        words: the command line, relative to the inputs; `OUT` stands for the output.
        output: the output's name.
        read: opens all that is there by the product's own readers, which raise where it is damaged.
        again: the words that a rerun adds.
        other: words that lead to another result under the same name, to be replaced.
        begins: the input that the command changes; copied to the output's place first.
    """

    name: str
    words: str
    output: str
    read: Callable[[Path], Content]
    again: str = "--force"
    other: str = ""
    begins: str = ""


def read_bundle(path: Path) -> Content:
    """Return the hashes of a bundle's files; those of plans differ from build to build."""
    if not path.exists():
        return None
    files = Bundle.open(path).manifest.files
    return {name: "" if "plans/" in name else file.sha256 for name, file in files.items()}


def read_support(path: Path) -> Content:
    """Return a support's hash."""
    if not path.exists():
        return None
    Support.load(path)
    return sha256(path)


def read_masks(path: Path) -> Content:
    """Return the results of `predict` but for the times, and the hashes of its pictures."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
        line["sha256"] = [sha256(path / each["mask"]) for each in line["classes"]]
        for each in line["classes"]:
            Image.open(path / each["mask"]).load()
        line["sha256"].append(sha256(path / line["overlay"]))
    return lines


def read_evaluation(path: Path) -> Content:
    """Return the counts of an evaluation."""
    if not path.exists():
        return None
    return {fold: (run.labels, run.counts.tolist()) for fold, run in read_runs(path).items()}


def read_kernels(path: Path) -> Content:
    """Return the hashes of compiled kernels; the JSON files are parsed."""
    if not path.exists():
        return None
    for each in path.rglob("*.json"):
        json.loads(each.read_text())
    return {each.name: sha256(each) for each in path.rglob("*") if each.is_file()}


def read_checkpoint(path: Path) -> Content:
    """Return a model's tensors by their bytes; its provenance holds the time that it took."""
    from uino_deploy.model.checkpoint import load_checkpoint

    if not path.exists():
        return None
    return {n: t.numpy().tobytes() for n, t in load_checkpoint(path).state_dict().items()}


def read_training(path: Path) -> Content:
    """Return the hashes of a training's model and settings; its state and its log must load."""
    from uino_deploy.training.run_folder import LOG, MODEL, SETTINGS, load_state

    if not path.exists():
        return None
    load_state(path)
    if (path / LOG).exists():
        with (path / LOG).open(newline="") as file:
            list(csv.DictReader(file))
    settings = None
    if (path / SETTINGS).exists():
        settings = json.loads((path / SETTINGS).read_text())
    if not (path / MODEL).exists():
        return None
    read_checkpoint(path / MODEL)
    return sha256(path / MODEL), settings


TRAINING = "--checkpoint tiny.safetensors --batch 2 --warmup 2 --save-every 1 -o OUT"
COMMANDS = (
    Command("export", "export --checkpoint tiny.safetensors -o OUT", "b.uino", read_bundle,
            other="--precision fp16"),
    Command("enroll", "enroll demo.uino --shot shot.png:mask.png --name a -o OUT", "a.safetensors",
            read_support, other="--name b"),
    Command("predict", "predict demo.uino photos --support a.safetensors -o OUT", "found",
            read_masks, other="--threshold 1"),
    Command("build", "build OUT --backend tensorrt-rtx --arch sm_89 --piece adapter", "b.uino",
            read_bundle, begins="demo.uino", other="--tf32"),
    Command("evaluate", "evaluate demo.uino --dataset demo --episodes 40 -o OUT", "results.json",
            read_evaluation, other="--seed 9"),
    Command("train", f"train --dataset demo --steps 5 {TRAINING}", "run", read_training,
            "--resume", other="--seed 9"),
    Command("train --recipe", "train --recipe demo --max-steps 1 -o OUT", "t.safetensors",
            read_checkpoint, other="--seed 9"),
    Command("distill", f"distill --images photos --sam-checkpoint sam.pth --steps 3 {TRAINING}",
            "run", read_training, "--resume", other="--seed 9"),
    Command("kernels build", "kernels build --arch sm_87 --preset tiny -o OUT", "kernels",
            read_kernels, other="--cuda 13.0"),
    Command("kernels build --bundle", "kernels build --arch sm_87 --bundle OUT", "b.uino",
            read_bundle, begins="demo.uino", other="--cuda 13.0"),
)  # fmt: skip


def make_inputs(folder: Path, bundle: Path, names: Iterable[str]) -> None:
    """Write the inputs of some commands: a checkpoint, a bundle, pictures, a support, a teacher."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(CHECKPOINT, folder / "tiny.safetensors")
    if bundle != folder / "demo.uino":
        shutil.copytree(bundle, folder / "demo.uino")
    image, mask = draw_letter(0)
    Image.fromarray(image).save(folder / "shot.png")
    Image.fromarray(mask * np.uint8(255)).save(folder / "mask.png")
    (folder / "photos").mkdir(exist_ok=True)
    for index in range(4):
        Image.fromarray(np.roll(image, 9 * index, 1)).save(folder / "photos" / f"{index}.png")
    if "distill" in names:
        from tests.model.test_sam_encoder import filled, official_file
        from uino_deploy.model.sam_encoder import SamEncoderConfig

        small = SamEncoderConfig(32, 2, 2, (1,), window=3, image_size=128, embedding=64)
        official_file(filled(small, seed=3), folder / "sam.pth")
