"""The tutorial is true: commands with `$` run as printed, others parse."""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from PIL import Image

from tests.pages import (
    ROOT,
    check_command,
    console_commands,
    environment_with_command,
    run,
    shell_lines,
    without_numbers,
)
from uino_deploy.data.procedural import Procedural

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
IMAGES = 50


def words(line: str) -> str:
    """Leave out what differs from machine to machine: numbers, their signs, widths of columns."""
    return re.sub(r"[+\s]+", "", without_numbers(line))


def draw_mugs(folder: Path) -> None:
    """Write 50 drawings of one character and their masks, in the place of a user's photographs."""
    dataset = Procedural("demo", "held-out")
    label = 7
    for number in range(IMAGES):
        index = dataset.images(label)[number // 2].rsplit("/", 1)[0]
        key = f"{index}/{number % 2}"
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.image(key)).save(folder / f"images/{number:04d}.jpg", quality=95)
        mask = 255 * dataset.mask(key, label)
        Image.fromarray(mask).save(folder / f"masks/{number:04d}.png")


def test_commands_run_as_printed(tmp_path):
    draw_mugs(tmp_path / "mugs")
    shutil.copy(ROOT / "uino_deploy/assets/tiny.safetensors", tmp_path / "base.safetensors")
    environment = environment_with_command(tmp_path)
    commands = console_commands(PAGE)
    assert len(commands) == 8
    for line, expected in commands:
        printed = run(["bash", "-c", line], tmp_path, environment)
        assert [words(each) for each in printed.splitlines()] == [*map(words, expected)], line
    assert (tmp_path / "found/masks/mug/0005.png").is_file()


def test_other_commands_parse():
    lines = shell_lines(PAGE)
    assert len(lines) == 7
    for line in lines:
        check_command(line)
