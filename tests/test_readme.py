"""The pages are true: console blocks run as printed, other commands parse, links resolve."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.pages import (
    ROOT,
    blocks,
    check_command,
    check_links,
    console_commands,
    environment_with_command,
    run,
    shell_lines,
    without_numbers,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [*sorted(ROOT.glob("kernels/**/README.md")), *sorted(ROOT.glob("docs/*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "uino_deploy" / "training" / "README.md"]
PAGES += [ROOT / "tests" / folder / "README.md" for folder in ("crash", "gpu")]
# Their console blocks run after the README's, on what its commands left.
CONTINUED = [ROOT / "docs" / "inspection.md"]
# Deployment and tutorial have their own tests.
PARSED = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
PARSED += [
    ROOT / "docs" / name
    for name in (
        "ablation.md",
        "backends.md",
        "precision.md",
        "presence.md",
        "service.md",
        "training.md",
    )
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Return a folder in which the README's paths exist, and an environment with the command."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "uino_deploy").symlink_to(ROOT / "uino_deploy")
    return folder, environment_with_command(folder)


def test_console_blocks_run_as_printed(workplace):
    folder, environment = workplace
    commands = console_commands(README)
    assert "uino-deploy demo" in commands[0][0], "the rest uses what the demo leaves"
    commands += [each for page in CONTINUED for each in console_commands(page.read_text("utf-8"))]
    for command, expected in commands:
        printed = run(["bash", "-c", command], folder, environment)
        got = [without_numbers(line) for line in printed.splitlines()]
        assert got == [without_numbers(line) for line in expected], command
    for block in blocks(README, "python"):
        run([sys.executable, "-c", block], folder, environment)
    check_accuracy(folder, commands[0][1])


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


@pytest.mark.parametrize("page", PARSED, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_commands_parse(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    lines = shell_lines(page.read_text("utf-8"))
    assert any(line[0] == "uino-deploy" for line in lines)
    for line in lines:
        if line[0] == "make":
            assert line[1] in targets
        elif line[0] == "uino-deploy":
            check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    check_links(page)


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|uino_deploy|export|kernels|benchmarks)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_lists_every_extra_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = README[README.index("| extra |") : README.index("Python 3.10 to 3.13, numpy")]
    rows = [row for row in table.splitlines()[2:] if row.startswith("|")]
    listed = {name for row in rows for name in re.findall(r"`(.+?)`", row.split("|")[1])}
    assert listed == set(project["optional-dependencies"])
