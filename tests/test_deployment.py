"""The deployment guide and its Dockerfiles: tables from the code, commands parse, files exist."""

import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from uino_deploy import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "deployment.md"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's (instruction, arguments), continued lines joined."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def shell_lines() -> list[list[str]]:
    """Return the commands of the guide's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    """Parse a `uino-deploy` command: raises on an unknown command, option or argument."""
    command = cli.cli.get_command(click.Context(cli.cli), words[1]) if words[1:] else cli.cli
    assert command is not None, words
    arguments = words[2:]
    if isinstance(command, click.Group) and command is not cli.cli:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[1], arguments)


def requested_extras(text: str) -> set[str]:
    found = re.findall(r"\.\[([\w,-]+)\]", text)
    return {extra for group in found for extra in group.split(",")}


def test_the_tensor_tables_are_the_codes():
    """Write the page anew by: python -m uino_deploy.export.tensor_tables > docs/tensors.md."""
    from uino_deploy.export.tensor_tables import page

    assert (ROOT / "docs" / "tensors.md").read_text("utf-8") == page()


def test_commands_of_the_guide_parse():
    commands = [words for words in shell_lines() if words[0] == "uino-deploy"]
    assert len(commands) > 15
    for words in commands:
        check_command(words)


def test_extras_of_the_guide_exist():
    wanted = requested_extras(GUIDE.read_text("utf-8"))
    assert wanted
    assert wanted <= set(EXTRAS)


@pytest.mark.parametrize("page", [GUIDE, ROOT / "docs" / "tensors.md"], ids=lambda p: p.name)
def test_links_resolve(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, anchor


def test_there_is_an_image_for_each_target():
    assert {path.name.partition(".")[0] for path in DOCKERFILES} == {
        "datacenter",
        "orin-jetpack6",
        "orin-jetpack7",
        "rtx-workstation",
        "thor-jetpack7",
    }
    guide = GUIDE.read_text("utf-8")
    for path in DOCKERFILES:
        assert f"../docker/{path.name}" in guide


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_and_what_they_copy_exists(path):
    lines = instructions(path)
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    (image,) = [rest for word, rest in lines if word == "FROM"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), image
    assert not image.endswith(":latest")
    for word, rest in lines:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    copied = {s for word, rest in lines if word == "COPY" for s in rest.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "uino_deploy"} <= copied


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_install_what_the_project_offers(path):
    text = path.read_text("utf-8")
    assert requested_extras(text) <= set(EXTRAS)
    numpy = re.search(r'"numpy>=1\.26,<([\d.]+)"', text)
    if "l4t-jetpack:r36" in text:
        assert numpy is not None
        assert numpy[1] == "2", "TensorRT 10.3's bindings corrupt arrays under NumPy 2"
    elif "nvidia/tensorrt:" in text:
        assert numpy is not None
        assert numpy[1] == "2.4", "plugin attributes fail under NumPy 2.4 before 11.2.1"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_commands_of_the_images_parse(path):
    for word, rest in instructions(path):
        if word == "RUN" and rest.startswith("uino-deploy"):
            assert shlex.split(rest) == ["uino-deploy", "--version"]
        elif word == "CMD":
            (name,) = re.fullmatch(r'\["([\w-]+)"\]', rest).groups()
            check_command(["uino-deploy", name])
        elif word == "ENTRYPOINT":
            assert rest == '["uino-deploy"]'


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_leave_no_package_lists(path):
    for word, rest in instructions(path):
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if word == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest


def test_nothing_that_is_ignored_is_copied():
    ignored = {line.strip("*/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    for path in DOCKERFILES:
        for word, rest in instructions(path):
            if word == "COPY":
                assert not ignored & set(rest.split()[:-1])
