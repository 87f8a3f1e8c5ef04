"""SECURITY.md and docs/security.md: limits and lowest versions are the code's, commands parse."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.pages import ROOT, check_command, check_links, shell_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

POLICY = ROOT / "SECURITY.md"
PAGE = ROOT / "docs" / "security.md"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def rows(path: Path, title: str) -> list[list[str]]:
    """Return the rows of the table in a section."""
    section = path.read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_limits_are_the_codes():
    listed = rows(POLICY, "Limits")
    assert len(listed) == 11
    for what, limit, constant in listed:
        module, _, name = constant.strip("`").rpartition(".")
        number, _, unit = limit.replace(",", "").partition(" ")
        expected = getattr(import_module(module), name)
        assert int(number) * UNITS.get(unit, 1) == expected, what


def test_the_lowest_versions_are_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    bounds = [*project["dependencies"], *(each for extra in extras for each in extra)]
    for package, version, _ in rows(POLICY, "Lowest versions"):
        assert any(re.match(rf"{package}>={re.escape(version)}(;|$)", each) for each in bounds), (
            package
        )


@pytest.mark.parametrize("page", [POLICY, PAGE], ids=lambda page: page.name)
def test_links_resolve(page):
    check_links(page)


def test_commands_of_the_page_parse(monkeypatch, tmp_path):
    pytest.importorskip("cryptography")
    from uino_deploy.bundle.sign import new_key_pair

    monkeypatch.chdir(tmp_path)
    new_key_pair("fleet.pem")  # the option reads its key at once
    commands = [
        words for words in shell_lines(PAGE.read_text("utf-8")) if words[0] == "uino-deploy"
    ]
    assert len(commands) == 4
    for words in commands:
        check_command(words)


def test_the_names_on_the_page_are_the_codes():
    from uino_deploy.bundle.signature import VARIABLE, signature_path
    from uino_deploy.cli.sign import PASSPHRASE

    text = PAGE.read_text("utf-8")
    for name in (VARIABLE, PASSPHRASE, str(signature_path("manifest.json"))):
        assert f"`{name}`" in text
