"""Atomic, reproducible writing of files and folders, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from uino_deploy.errors import InputError, OutputExists

_CHUNK = 1 << 20
_NOT_HERE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def safetensors_bytes(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file whose bytes depend only on its contents.

    The library writes the metadata in an order that changes from run to run; here it is sorted.
    """
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    length = int.from_bytes(data[:8], "little")
    tensors = msgspec.json.decode(data[8 : 8 + length])
    header = msgspec.json.encode({"__metadata__": dict(sorted(metadata.items())), **tensors})
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def refuse_existing(path: str | Path, force: bool, marker: str | None = None) -> Path:
    """Return an output's absolute path if it may be written.

    Args:
        path: the output.
        force: it may replace what exists.
        marker: a file that a folder must hold to be replaced, so that `--force` with a mistyped
            output cannot delete a folder that this command never wrote.

    Raises:
        OutputExists: it exists, and `force` is not given or the marker is missing.
    """
    target = Path(os.path.abspath(path))
    if os.path.lexists(target):
        if not force:
            raise OutputExists(
                f"{path} exists", "choose another output, or replace it with --force"
            )
        if marker and not (target / marker).is_file():
            raise OutputExists(
                f"{path} exists and is not this command's output (it contains no {marker})",
                "choose another output",
            )
    return target


@contextmanager
def atomic_directory(
    path: str | Path, force: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Yield an empty folder beside `path` that replaces it when the block succeeds.

    Missing parents are created. On any exception, Ctrl-C included, the folder is removed and `path`
    stays unchanged. What `force` replaces is moved aside first and deleted last.

    Args:
        path: the finished folder.
        force: replace what exists.
        marker: see `refuse_existing`.

    Raises:
        OutputExists: see `refuse_existing`.
    """
    target = refuse_existing(path, force, marker)
    temporary = _sibling(target, "tmp")
    with _writable(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        refuse_existing(path, force, marker)
        _share([each for each in temporary.rglob("*") if each.is_file()])
        _move_over(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to, renamed to it when the block succeeds.

    Missing parents are created. On any exception, Ctrl-C included, the written file is removed and
    `path` stays unchanged.

    Raises:
        OutputExists: `path` exists and `force` is not given, or it is a folder.
    """
    target = refuse_existing(path, force)
    if target.is_dir():
        raise OutputExists(f"{path} is a folder", "name a file")
    with _writable(path):
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target, "tmp")
    try:
        yield temporary
        refuse_existing(path, force)
        _share([temporary])
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writable(path: str | Path) -> Iterator[None]:
    """Turn the system's refusal to create an output's folder into a user error."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        raise InputError(f"output {path}: {error.strerror}", "choose another output") from error


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock while the block runs; yield whether it is held.

    Args:
        folder: the folder to change under the lock, such as a bundle.
        wait: wait until the lock is free; otherwise yield False at once.
    """
    if sys.platform == "win32":  # no such lock there; concurrent builds go undetected
        yield wait
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)


def _sibling(target: Path, kind: str) -> Path:
    """Return an unused hidden name beside `target`, so that renaming stays on one file system."""
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def _share(files: Iterable[Path]) -> None:
    """Give files the mode of an ordinary new file: onnx and safetensors write owner-only files."""
    mode = None
    for file in files:
        if mode is None:
            probe = _sibling(file, "mode")
            probe.touch(exist_ok=False)
            mode = probe.stat().st_mode
            probe.unlink()
        file.chmod(mode)


def _move_over(temporary: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(temporary, target)
        return
    old = _sibling(target, "old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink()
