"""The contents of a Markdown page to test: commands, their output, and links."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click

from uino_deploy import cli

ROOT = Path(__file__).resolve().parent.parent


def blocks(text: str, language: str) -> list[str]:
    """Return a page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def console_commands(text: str) -> list[tuple[str, list[str]]]:
    """Return (command, expected output lines) of every `console` block, in their order."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(text, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def shell_lines(text: str) -> list[list[str]]:
    """Return the words of every command in a page's `sh` blocks, without a redirected output."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line.partition(" > ")[0], comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]


def check_command(words: list[str]) -> None:
    """Parse a `uino-deploy` command: raises on an unknown command, option or argument."""
    assert words[0] == "uino-deploy"
    command = cli.cli.get_command(click.Context(cli.cli), words[1]) if words[1:] else cli.cli
    assert command is not None, words
    arguments = words[2:]
    if isinstance(command, click.Group) and command is not cli.cli:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[1], arguments)


def check_links(page: Path) -> None:
    """Assert that the page's links to files and headings lead somewhere."""
    for name, anchor in re.findall(
        r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")
    ):
        if re.match(r"https?://", name):
            continue
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in _anchors(target), f"{name}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }


def environment_with_command(folder: Path) -> dict[str, str]:
    """Put a `uino-deploy` into a folder's `bin` and return an environment that finds it."""
    command = folder / "bin" / "uino-deploy"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uino_deploy "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a command, assert that it ends well, and return what it printed."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def without_numbers(line: str) -> str:
    """Blank out what differs from machine to machine: numbers, hashes, widths of columns."""
    line = re.sub(r"\b[0-9a-f]{16,64}\b", "#", line)
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[-+]\d+)?", "#", line)
    return re.sub(r"[\s-]+", " ", line).strip()
