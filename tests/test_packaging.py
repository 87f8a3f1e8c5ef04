"""The three real folders, the links, setuptools' list and the wheel describe one package."""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("benchmarks", "export", "kernels")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk() -> list[str]:
    """Return every folder with an `__init__.py`, named as it is installed."""
    found = []
    for init in (ROOT / "uino_deploy").rglob("__init__.py"):
        folder = init.parent.relative_to(ROOT)
        if folder.parts[1:2] and folder.parts[1] in MAPPED:
            continue  # whether rglob follows links depends on the version of Python
        found.append(".".join(folder.parts))
    for name in MAPPED:
        for init in (ROOT / name).rglob("__init__.py"):
            found.append(".".join(("uino_deploy", *init.parent.relative_to(ROOT).parts)))
    return sorted(found)


def files_on_disk() -> set[str]:
    """Return the tracked files of the package, by the path that they have when installed."""
    listed = subprocess.run(
        ["git", "ls-files", "uino_deploy", *MAPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = set()
    for line in listed.stdout.splitlines():
        path = ROOT / line
        if path.is_symlink() or not path.exists():
            continue
        names.add(line if line.startswith("uino_deploy/") else f"uino_deploy/{line}")
    return names


def test_setuptools_lists_every_package_on_disk():
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_mapping_names_the_three_folders():
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"uino_deploy.{name}": name for name in MAPPED}


@pytest.mark.parametrize("name", MAPPED)
def test_link_leads_to_the_folder(name):
    link = ROOT / "uino_deploy" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


@pytest.mark.parametrize("name", MAPPED)
def test_importing_a_folder_under_its_own_name_is_refused(name):
    # A second copy of `kernels` would register every operator twice.
    spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=f"uino_deploy.{name}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# Links, which the Makefile makes again where an sdist was unpacked.
NOT_IN_THE_SDIST = {f"uino_deploy/{name}" for name in MAPPED}
# What setuptools writes into an sdist.
WRITTEN = re.compile(r"PKG-INFO|setup\.cfg|uino_deploy\.egg-info/.*")


def test_the_sdist_holds_the_checkout_and_its_wheel_the_package(tmp_path):
    pytest.importorskip("setuptools")
    # A copy of the tracked files: the build leaves its folders beside the sources.
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.split("\0") if name and os.path.lexists(ROOT / name)}
    for name in tracked:
        path, copy = ROOT / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        else:
            copy.write_bytes(path.read_bytes())
    subprocess.run(  # the wheel is built from the sdist
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = [each.name.partition("/")[2] for each in archive if each.isfile()]
    assert {name for name in files if not WRITTEN.fullmatch(name)} == tracked - NOT_IN_THE_SDIST
    # Of one platform, for every supported Python: the library is no Python module.
    (wheel,) = tmp_path.glob("*-cp310-abi3-linux_*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if n.startswith("uino_deploy/")}
        metadata = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        assert b"License-Expression: Apache-2.0" in archive.read(metadata)
    library = "uino_deploy/kernels/native/_native.abi3.so"
    assert names == files_on_disk() | {library}
    unpacked = tmp_path / "library.so"
    with zipfile.ZipFile(wheel) as archive:
        unpacked.write_bytes(archive.read(library))
    assert ctypes.CDLL(str(unpacked)).uino_form(0)


def test_lowest_versions_are_the_bounds_of_the_project():
    project = PROJECT["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    lowest = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lowest if line and not line.startswith("#")]
    assert pins == [bound.replace(">=", "==", 1) for bound in bounds]


def test_extras_are_the_documented_ones():
    assert set(PROJECT["project"]["optional-dependencies"]) == {
        "coco",
        "cpu",
        "dev",
        "export",
        "gpu",
        "instances",
        "mamba",
        "openvino",
        "pages",
        "serve",
        "signing",
        "tensorrt",
        "tensorrt-rtx",
        "train",
    }
