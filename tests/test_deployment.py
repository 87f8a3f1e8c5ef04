"""The deployment guide and its Dockerfiles: tables from the code, commands parse."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, check_command, shell_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GUIDE = ROOT / "docs" / "deployment.md"
SERVICE = (ROOT / "docs" / "service.md").read_text("utf-8")
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's (instruction, arguments), continued lines joined."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def requested_extras(text: str) -> set[str]:
    found = re.findall(r"\.\[([\w,-]+)\]", text)
    return {extra for group in found for extra in group.split(",")}


def test_the_tensor_tables_are_the_codes():
    """Update the page with: python -m uino_deploy.export.tensor_tables > docs/tensors.md."""
    from uino_deploy.export.tensor_tables import page

    assert (ROOT / "docs" / "tensors.md").read_text("utf-8") == page()


def test_commands_of_the_guide_parse():
    commands = [
        words for words in shell_lines(GUIDE.read_text("utf-8")) if words[0] == "uino-deploy"
    ]
    assert len(commands) > 15
    for words in commands:
        check_command(words)


def test_extras_of_the_guide_exist():
    wanted = requested_extras(GUIDE.read_text("utf-8"))
    assert wanted
    assert wanted <= set(EXTRAS)


def test_there_is_an_image_for_each_target():
    assert {path.name.partition(".")[0] for path in DOCKERFILES} == {
        "datacenter",
        "orin-jetpack6",
        "orin-jetpack7",
        "rtx-workstation",
        "service",
        "thor-jetpack7",
    }
    guide = GUIDE.read_text("utf-8")
    for path in DOCKERFILES:
        page = SERVICE if path.name.startswith("service") else guide
        assert f"../docker/{path.name}" in page


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
