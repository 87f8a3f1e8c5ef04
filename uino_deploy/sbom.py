"""The software bill of materials: what is installed, as CycloneDX, from the packages' metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

import uino_deploy
from uino_deploy.files import atomic_file

Component = dict[str, Any]
"""A component as CycloneDX 1.6 writes it in JSON."""

SPECIFICATION = "1.6"
PROJECT = "uino-deploy"
# A name, and extras in brackets.
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
# A longer text is the licence itself, not its name.
_LONGEST_NAME = 80


def bill_of_materials(extras: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the CycloneDX document of this installation.

    It holds the packages that the project and its extras need, those of them that are installed,
    and what these need in turn. Where the project is not installed but runs from a folder, nothing
    says what it needs, and every installed package is listed. The document depends on the
    installation alone: it has no time and no serial number.

    Args:
        extras: extras of this project; None for all.
    """
    project = _installed(PROJECT)
    if project is None:
        itself = _component(PROJECT, uino_deploy.__version__)
        found = {normalised(each.metadata["Name"]): each for each in distributions()}
    else:
        itself = component(project)
        wanted = project.metadata.get_all("Provides-Extra") or () if extras is None else extras
        found = _closure(project, frozenset(wanted))
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "version": 1,
        "metadata": {"component": {**itself, "type": "application"}},
        "components": [component(each) for _, each in sorted(found.items())],
    }


def write_bill(bill: dict[str, Any], path: str | Path, force: bool = False) -> None:
    """Write a document as JSON.

    Raises:
        OutputExists: the file exists and `force` is not given.
    """
    text = json.dumps(bill, indent=2, ensure_ascii=False)
    with atomic_file(path, force) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def component(package: Distribution) -> Component:
    """Return an installed package as a component: name, version, licence, and hash where known.

    Only a package that was installed from an archive by its address has a known hash: an index's
    hash is checked by pip and not kept.
    """
    made = _component(normalised(package.metadata["Name"]), package.version)
    licences = _licences(package)
    if licences:
        made["licenses"] = licences
    digest = _archive_hash(package)
    if digest:
        made["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return made


def licence_of(made: Component) -> str:
    """Return a component's licence as text; "not stated" if its metadata names none."""
    texts = [each.get("expression") or each["license"]["name"] for each in made.get("licenses", ())]
    return "; ".join(texts) or "not stated"


def normalised(name: str) -> str:
    """Return a package's name as an index compares it: `Foo._Bar` is `foo-bar`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _component(name: str, version: str) -> Component:
    reference = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
    }


def _closure(project: Distribution, extras: frozenset[str]) -> dict[str, Distribution]:
    """Return the installed packages that the project needs, directly or not, by name.

    A requirement that holds elsewhere, such as on Windows, counts where its package is installed.
    """
    found: dict[str, Distribution] = {}
    waiting, seen = [(project, extras)], set()
    while waiting:
        package, wanted = waiting.pop()
        for requirement in package.requires or ():
            asked = _EXTRA.search(requirement)
            parts = _REQUIREMENT.match(requirement)
            if parts is None or (asked and asked[1] not in wanted):
                continue
            name = normalised(parts[1])
            needed = _installed(name)
            further = frozenset(each.strip() for each in (parts[2] or "").split(","))
            if needed is None or name == PROJECT or (name, further) in seen:
                continue
            seen.add((name, further))
            found[name] = needed
            waiting.append((needed, further))
    return found


def _licences(package: Distribution) -> list[Any]:
    """Return the licence: an SPDX expression, a name, or the names in the classifiers."""
    metadata = package.metadata
    for expression in metadata.get_all("License-Expression") or ():
        return [{"expression": expression}]
    marks = [each.split(" :: ") for each in metadata.get_all("Classifier") or ()]
    names = [mark[-1] for mark in marks if mark[0] == "License" and len(mark) > 2]
    text = " ".join(" ".join(metadata.get_all("License") or ()).split())
    if text and text != "UNKNOWN" and len(text) <= _LONGEST_NAME:
        names = [text]
    return [{"license": {"name": name}} for name in names]


def _archive_hash(package: Distribution) -> str:
    """Return the SHA-256 of the archive that a package came from; empty if nobody recorded it."""
    text = package.read_text("direct_url.json")
    try:
        archive = json.loads(text or "{}").get("archive_info", {})
    except (ValueError, AttributeError):
        return ""
    digest = str(archive.get("hashes", {}).get("sha256", ""))
    return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else ""
