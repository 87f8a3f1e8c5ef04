"""The locks hold what the project asks for, with hashes; the page of licences is the locks'.

`make lock` renews all three. `python -m tests.test_locks` writes the page.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from uino_deploy.markdown import table
from uino_deploy.sbom import component, licence_of, normalised

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCKS = [ROOT / "requirements" / f"{name}.lock" for name in ("demo", "test")]
PAGE = ROOT / "docs" / "licences.md"
ENTRY = re.compile(
    r"([a-z0-9-]+)==([^ ;\\]+)(?: ; ([^\\]+?))?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n"
)
INTRODUCTION = """# Licences of the dependencies

What `make demo` and `make test` install, from `requirements/*.lock` and torch, with the licence in
each package's own metadata, on Linux on x86_64 with Python 3.11. A device needs fewer:
`uino-deploy sbom` lists what is installed where it runs. `make lock` writes this page.

"""


def entries(path: Path) -> list[tuple[str, str, str, str]]:
    """Return a lock's (name, version, marker, hashes)."""
    return ENTRY.findall(path.read_text(encoding="utf-8"))


def here() -> dict[str, str]:
    """Return the locked packages that this interpreter needs, and their versions."""
    from packaging.markers import Marker

    pinned = tomllib.loads((ROOT / "requirements" / "torch.toml").read_text("utf-8"))
    (torch,) = pinned["constraint-dependencies"]
    found = {"torch": torch.removeprefix("torch==")}
    for path in LOCKS:
        for name, version, marker, _ in entries(path):
            if not marker or Marker(marker).evaluate():
                found[name] = version
    return dict(sorted(found.items()))


def licences() -> dict[str, tuple[str, str]]:
    """Return version and licence of the locked packages that are installed as locked."""
    found = {}
    for name, version in here().items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if package.version.partition("+")[0] == version:
            found[name] = (version, licence_of(component(package)))
    return found


def listed() -> dict[str, tuple[str, str]]:
    """Return version and licence by package, as the page has them."""
    rows = [line.split("|")[1:4] for line in PAGE.read_text("utf-8").splitlines() if "|" in line]
    stripped = [[cell.strip() for cell in row] for row in rows[2:]]
    return {name: (version, licence) for name, version, licence in stripped}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_is_nothing_but_pinned_packages_with_hashes(path):
    text = path.read_text(encoding="utf-8")
    rest = re.sub(r"^#.*\n", "", ENTRY.sub("", text), flags=re.MULTILINE)
    assert rest == "", "no address, no option and no package without a hash"
    assert "://" not in text
    assert len(entries(path)) > 30
    for name, _, _, _ in entries(path):
        assert name != "torch", "which build of torch it is, is the index's choice"


def test_the_locks_hold_what_the_project_asks_for():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = {
        "demo": [*project["dependencies"], *extras["cpu"], *extras["export"], *extras["train"]]
    }
    asked["test"] = asked["demo"] + extras["dev"]
    pinned = here()
    demo = {name for name, _, _, _ in entries(LOCKS[0])} | {"torch"}
    for lock, requirements in asked.items():
        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate():
                continue
            name = normalised(requirement.name)
            assert requirement.specifier.contains(pinned[name]), f"{requirement}: make lock"
            assert lock == "test" or name in demo, f"{requirement}: make lock"


def test_the_lock_is_for_the_torch_of_the_makefile():
    (torch,) = tomllib.loads((ROOT / "requirements" / "torch.toml").read_text("utf-8"))[
        "constraint-dependencies"
    ]
    assert f"TORCH ?= {torch}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_the_makefile_installs_only_by_hash_but_torch():
    text = (ROOT / "Makefile").read_text("utf-8")
    rules = text[text.index("$(VENV)/.demo:") : text.index("# The runtime where nothing but")]
    installs = [line for line in rules.splitlines() if "$(call PIP" in line]
    assert len(installs) == 4
    for line in installs:
        locked = "--require-hashes --no-deps --requirement requirements/" in line
        ours = line.endswith("--no-deps --no-build-isolation --editable .")
        assert locked or ours or line.endswith('"$(TORCH)"'), line


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="the page is of another set"
)
def test_the_page_of_licences_is_the_locks():
    """Update the page with `make lock`."""
    found = listed()
    for name, version in here().items():
        assert found[name][0] == version, name
    for name, row in licences().items():
        assert found[name] == row, name
    assert PAGE.read_text("utf-8").startswith(INTRODUCTION)


if __name__ == "__main__":
    known = licences()
    missing = here().keys() - known.keys()
    assert not missing, f"not installed as locked: {', '.join(sorted(missing))}"
    rows = [[name, *row] for name, row in known.items()]
    PAGE.write_text(INTRODUCTION + table(["package", "version", "licence"], rows), "utf-8")
