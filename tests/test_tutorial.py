"""The tutorial keeps its word: commands with `$` run as printed, others parse, links resolve."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from PIL import Image

from tests.test_readme import without_numbers
from uino_deploy import cli
from uino_deploy.data.procedural import Procedural

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
IMAGES = 50


def blocks(language: str) -> str:
    """Return the page's fenced blocks of one language, joined."""
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def console_commands() -> list[tuple[str, list[str]]]:
    """Return (command, expected output lines) in their order."""
    found: list[tuple[str, list[str]]] = []
    for line in blocks("console").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


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
    command = tmp_path / "bin" / "uino-deploy"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uino_deploy "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    commands = console_commands()
    assert len(commands) == 8
    for line, expected in commands:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert [words(each) for each in done.stdout.splitlines()] == [*map(words, expected)], line
    assert (tmp_path / "found/masks/mug/0005.png").is_file()


def test_other_commands_parse():
    lines = [shlex.split(line) for line in blocks("sh").replace("\\\n", " ").splitlines()]
    assert len(lines) == 7
    for program, name, *arguments in lines:
        assert program == "uino-deploy"
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None, name
        command.make_context(name, arguments)


def test_links_resolve():
    for target in re.findall(r"\]\(([^)#\s]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
