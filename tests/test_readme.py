"""The README keeps its word: console blocks run as printed, other commands parse, links resolve."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from uino_deploy import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(ROOT.glob("kernels/*/README.md"))


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def console_commands() -> list[tuple[str, list[str]]]:
    """Return (command, expected output lines) of every `console` block, in their order."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def without_numbers(line: str) -> str:
    """Blank out what differs from machine to machine: numbers, hashes, widths of columns."""
    line = re.sub(r"\b[0-9a-f]{16,64}\b", "#", line)
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[-+]\d+)?", "#", line)
    return re.sub(r"[\s-]+", " ", line).strip()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Return a folder in which the README's paths exist, and an environment with the command."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "uino_deploy").symlink_to(ROOT / "uino_deploy")
    command = folder / "bin" / "uino-deploy"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uino_deploy "$@"\n')
    command.chmod(0o755)
    python = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, "PATH": path, "PYTHONPATH": python}


def test_console_blocks_run_as_printed(workplace):
    folder, environment = workplace
    commands = console_commands()
    assert "uino-deploy demo" in commands[0][0], "the rest uses what the demo leaves"
    for command, expected in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        got = [without_numbers(line) for line in done.stdout.splitlines()]
        assert got == [without_numbers(line) for line in expected], command
    check_python_blocks(folder, environment)
    check_accuracy(folder, commands[0][1])


def check_python_blocks(folder: Path, environment: dict[str, str]) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def check_accuracy(folder: Path, printed: list[str]) -> None:
    """Compare the printed mIoUs with the demo's: half a point for another machine's rounding."""
    import json

    report = json.loads((folder / "build/demo/report.json").read_text(encoding="utf-8"))
    rows = {line.split("  ")[0]: line.split()[-2:] for line in printed if "  " in line}
    numbers = {
        "miou_bundle": rows["bundle"][0],
        "miou_digits": rows["bundle"][1],
        "miou_reference": rows["PyTorch"][0],
        "miou_prototype_baseline": rows["prototype baseline"][0],
    }
    for key, number in numbers.items():
        assert abs(float(number) - report[key]) < 0.5, key


def test_other_commands_parse():
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    lines = [line for line in lines if line]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert any(line[0] == "make" for line in lines)
    for line in lines:
        if line[0] == "make":
            assert line[1] in targets
        elif line[0] == "uino-deploy":
            command = cli.cli.get_command(click.Context(cli.cli), line[1])
            assert command is not None, line[1]
            arguments = line[2:]
            if isinstance(command, click.Group):
                command, arguments = command.commands[arguments[0]], arguments[1:]
            command.make_context(line[1], arguments)  # raises on an unknown option or argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not re.match(r"https?://", target):
            assert (page.parent / target).exists(), target


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|uino_deploy|export|kernels|benchmarks)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_lists_every_extra_and_no_other():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = README[README.index("| extra |") : README.index("Python 3.10 to 3.13, numpy")]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(.+?)`", row)}
    assert listed - {"none"} >= set(project["optional-dependencies"])
