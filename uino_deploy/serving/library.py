"""The folder of enrolled classes: one checked support file for each, shared by processes.

A file is named after its class. It is replaced whole, and looked at again for every request, so
that what one process enrols or removes is at once what every other one sees.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from uino_deploy.bundle.manifest import Manifest
from uino_deploy.bundle.signature import Required, signature_path
from uino_deploy.bundle.support import Support, check_class_name
from uino_deploy.errors import InputError
from uino_deploy.inputs import few, nfc
from uino_deploy.serving.refusals import Refused

SUFFIX = ".safetensors"

KEPT_BYTES = 2 << 30
"""Bytes of the support files that a process keeps read."""


class _Read(NamedTuple):
    state: tuple[int, int, int]
    support: Support


class Library:
    """The classes in a folder that belong to one model.

    Args:
        folder: the folder; it is made if it does not exist.
        manifest: the model's, which every support must fit.
        required: the key that must have signed the supports, see `Required`.
    """

    def __init__(self, folder: Path, manifest: Manifest, required: Required = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._manifest = manifest
        self._required = required
        self._kept: OrderedDict[str, _Read] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of the classes, sorted; their files are not read."""
        return sorted(
            each.name.removesuffix(SUFFIX)
            for each in self.folder.iterdir()
            if each.name.endswith(SUFFIX) and not each.name.startswith(".")
        )

    def path(self, name: str) -> Path:
        """Return the file of a class, whether or not it exists.

        Raises:
            Refused: the name could name another file, or holds a comma, which parts names.
        """
        try:
            check_class_name(name)
        except InputError as error:
            raise Refused(400, str(error)) from error
        if "," in name:
            raise Refused(400, f"class name {name!r} holds a comma, which parts names")
        return self.folder / f"{nfc(name)}{SUFFIX}"

    def read(self, name: str) -> Support:
        """Return a class; what was read before is returned as long as its file is the same.

        Raises:
            Refused: there is no such class, or its file is damaged, another model's, or holds
                another class.
        """
        path = self.path(name)
        try:
            found = path.stat()
        except OSError as error:
            raise self.unknown(name) from error
        state = (found.st_mtime_ns, found.st_ino, found.st_size)
        with self._lock:
            kept = self._kept.get(path.name)
            if kept is None or kept.state != state:
                kept = _Read(state, self._load(name, path))
                self._kept[path.name] = kept
            self._kept.move_to_end(path.name)
            self._drop()
        return kept.support

    def remove(self, name: str) -> None:
        """Remove a class and its signature.

        Raises:
            Refused: there is no such class.
        """
        path = self.path(name)
        try:
            path.unlink()
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:
                raise
            raise self.unknown(name) from error
        signature_path(path).unlink(missing_ok=True)

    def unknown(self, name: str) -> Refused:
        """Return the answer for a class that does not exist."""
        names = self.names()
        return Refused(404, f"no class {name!r}; enrolled: {few(names, 10) if names else 'none'}")

    def _load(self, name: str, path: Path) -> Support:
        try:
            support = Support.load(path, self._required)
            support.check(self._manifest)
        except InputError as error:
            if not os.path.lexists(path):  # removed in between
                raise self.unknown(name) from error
            told = str(error).replace(str(path), path.name)
            raise Refused(409, f"class {name!r} cannot be used: {told}") from error
        if nfc(support.name) != nfc(name):
            raise Refused(
                409,
                f"class {name!r} cannot be used: {path.name} holds a class named {support.name!r}; "
                "name the file after it",
            )
        return support

    def _drop(self) -> None:
        """Forget the classes that were not asked for the longest where they are too many."""
        held = sum(read.state[2] for read in self._kept.values())
        while held > KEPT_BYTES and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].state[2]
