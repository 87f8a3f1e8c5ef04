"""Atomic, reproducible writing of files and folders, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save

from uino_deploy.errors import Degraded, InputError, OutputExists
from uino_deploy.workspace import work_folder, work_folder_stem

_CHUNK = 1 << 20
_NOT_HERE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}
# How a file system says that it lacks modes, or the flushing of a folder.
_LACKING = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
# A mount point, or what lies on another file system, cannot be renamed.
_FIXED = {errno.EBUSY, errno.EXDEV}
# What mkfs puts into a new volume: it is empty all the same.
_VOLUME = "lost+found"
# Inside a workspace: what an output replaced, until the new one is in its place.
_OLD = ".old"


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


def refuse_existing(path: str | Path, force: bool, marker: str | None = None) -> None:
    """Refuse an output that may not or cannot be written, before the work.

    Args:
        path: the output: a folder if a marker is given, else a file.
        force: it may replace what exists.
        marker: a file that a folder must hold to be replaced, so that `--force` with a mistyped
            output cannot delete a folder that this command never wrote.

    Raises:
        OutputExists: it exists, and `force` is not given or the marker is missing; or it is
            something that is never replaced, such as a device. An empty folder can be filled.
        InputError: it cannot exist there: a name that is too long, a folder that is read-only.
    """
    if marker is None:
        _check_file(path, force)
    else:
        _check_folder(path, force, marker)


def refuse_input(path: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that is an input, holds one, or lies inside one, whatever is forced.

    Args:
        path: the output.
        inputs: the files that the work reads, and folders of which it reads all, as bundles.

    Raises:
        OutputExists: replacing the output would take an input away.
    """
    target = os.path.realpath(path)
    for each in inputs:
        read = os.path.realpath(each)
        what = ""
        if read == target:
            what = "is also an input"
        elif read.startswith(os.path.join(target, "")):
            what = f"holds the input {each}"
        elif target.startswith(os.path.join(read, "")):
            what = f"lies inside the input {each}"
        if what:
            raise OutputExists(f"{path} {what}", "choose another output")


def refuse_read_only(folder: Path) -> None:
    """Refuse a folder that a command will add files to, such as a bundle, before the work.

    Raises:
        InputError: this user or the file system does not allow it.
    """
    if not _can_write(folder):
        raise InputError(f"{folder} cannot be written to", "copy it to a folder that can be")


@contextmanager
def atomic_directory(
    path: str | Path, force: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block succeeds.

    Missing parents are created. On any exception, Ctrl-C included, the folder is removed and `path`
    stays unchanged. What `force` replaces is moved aside first and deleted last. Where `path` is a
    link, the folder that it leads to is replaced. A mount point cannot be moved, and the working
    folder would go from under the user's shell: their contents are replaced one by one, the marker
    last.

    Args:
        path: the finished folder.
        force: replace what exists.
        marker: see `refuse_existing`.

    Raises:
        OutputExists, InputError: see `refuse_existing`.
    """
    target = _check_folder(path, force, marker)
    inside = target.is_dir() and _stays(target)
    parent = target if inside else target.parent

    def rescue(left: Path) -> None:
        if (left / _OLD).is_dir() and not os.path.lexists(target):
            os.rename(left / _OLD, target)

    with ExitStack() as stack:
        with _writable(path):
            parent.mkdir(parents=True, exist_ok=True)
            work = stack.enter_context(work_folder(parent, target.name, rescue))
        made = work / target.name
        made.mkdir()
        with _system_errors(made):
            yield made
        _check_folder(path, force, marker)
        _share([each for each in made.rglob("*") if each.is_file()], work)
        _flush(made)
        if inside:
            _fill(made, target, marker)
        else:
            _move_over(made, target, marker)
        _flush_folder(parent)


@contextmanager
def atomic_file(path: str | Path, force: bool = False, through: bool = True) -> Iterator[Path]:
    """Yield a path to write to, renamed to `path` when the block succeeds.

    Missing parents are created. On any exception, Ctrl-C included, the written file is removed and
    `path` stays unchanged.

    Args:
        path: the finished file.
        force: replace the file that exists.
        through: where `path` is a link, write what it leads to; otherwise replace the link.

    Raises:
        OutputExists, InputError: see `refuse_existing`.
    """
    target = _check_file(path, force, through)
    with ExitStack() as stack:
        with _writable(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            work = stack.enter_context(work_folder(target.parent, target.name))
        made = work / target.name
        with _system_errors(made):
            yield made
        _check_file(path, force, through)
        _share([made], work)
        _flush(made)
        try:
            os.replace(made, target)
        except OSError as error:
            if error.errno not in _FIXED:  # a file can be a mount point too
                raise
            shutil.copyfile(made, target)
        _flush_folder(target.parent)


def _check_file(path: str | Path, force: bool, through: bool = True) -> Path:
    """Return where a file will be written; see `refuse_existing`."""
    target, kind = _look(path, through)
    if kind == stat.S_IFDIR:
        raise OutputExists(f"{path} is a folder", "name a file")
    if kind is not None and not force:
        raise OutputExists(f"{path} exists", "choose another output, or replace it with --force")
    _check_parent(path, target)
    return target


def _check_folder(path: str | Path, force: bool, marker: str | None) -> Path:
    """Return where a folder will be written; see `refuse_existing`."""
    target, kind = _look(path, through=True)
    if kind is None:
        _check_parent(path, target)
        return target
    if kind != stat.S_IFDIR:
        raise OutputExists(f"{path} is a file", "name a folder")
    if all(_is_ours(name, target) for name in os.listdir(target)):
        return target
    if not force:
        raise OutputExists(f"{path} exists", "choose another output, or replace it with --force")
    if marker and not (target / marker).is_file():
        raise OutputExists(
            f"{path} exists and is not this command's output (it contains no {marker})",
            "choose another output",
        )
    return target


def _is_ours(name: str, target: Path) -> bool:
    """Return whether an entry of the target is no content: a workspace, or the file system's."""
    return name == _VOLUME or name.startswith(work_folder_stem(target.name))


def _look(path: str | Path, through: bool) -> tuple[Path, int | None]:
    """Return an output's absolute path, its links followed, and the kind of what lies there."""
    target = Path(os.path.abspath(path))
    if through:
        target = Path(os.path.realpath(path))
    elif target.is_symlink():  # the link is what is replaced
        return target, stat.S_IFREG
    with _writable(path):
        try:
            kind = stat.S_IFMT(os.stat(path).st_mode)
        except FileNotFoundError:
            return target, None
    if kind not in {stat.S_IFREG, stat.S_IFDIR}:
        raise OutputExists(f"{path} is a device, pipe or socket", "name a file or a folder")
    return target, kind


def _check_parent(path: str | Path, target: Path) -> None:
    """Refuse an output whose folder cannot be written to."""
    parent = next(each for each in target.parents if os.path.lexists(each))
    with _writable(path):
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not _can_write(parent):
            raise PermissionError(errno.EACCES, f"{parent} cannot be written to")
        # Not every file system that lets a user write lets files be made, such as /proc.
        tempfile.TemporaryFile(dir=parent).close()


def _stays(target: Path) -> bool:
    """Return whether a folder's contents must be replaced, not the folder."""
    try:
        here = os.path.samefile(target, os.curdir)
    except OSError:  # the working folder has gone
        here = False
    return here or os.path.ismount(target) or not _can_write(target.parent)


def _can_write(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


@contextmanager
def _writable(path: str | Path) -> Iterator[None]:
    """Turn the system's refusal to create an output into a user error."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        raise InputError(f"output {path}: {error.strerror}", "choose another output") from error


@contextmanager
def _system_errors(made: Path) -> Iterator[None]:
    """Raise safetensors' errors of the system, such as a full disk, as Python's are."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(made)) from error


def _share(files: Iterable[Path], work: Path) -> None:
    """Give files the mode of an ordinary new file: onnx and safetensors write owner-only files."""
    probe = work / ".mode"
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode
    probe.unlink()
    for file in files:
        if file.stat().st_mode == mode:
            continue
        try:
            file.chmod(mode)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            what = f"the file system has no modes ({error.strerror})"
            warnings.warn(f"{what}: the output keeps its own", Degraded, stacklevel=4)
            return


def _flush(made: Path) -> None:
    """Have an output on the disk before a name leads to it."""
    inner = [each for each in made.rglob("*") if not each.is_symlink()] if made.is_dir() else []
    for each in [*inner, made]:
        if each.is_dir():
            _flush_folder(each)
        elif sys.platform != "win32":  # which flushes only what is open for writing
            handle = os.open(each, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where the system can flush a folder."""
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it can be written to and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
    finally:
        os.close(handle)


def _move_over(made: Path, target: Path, marker: str | None) -> None:
    """Put a folder in the target's place."""
    if not target.is_dir():
        os.rename(made, target)
        return
    try:
        made.chmod(stat.S_IMODE(target.stat().st_mode))
    except OSError as error:
        if error.errno not in _LACKING:
            raise
    old = made.with_name(_OLD)
    try:
        os.rename(target, old)
    except OSError as error:
        if error.errno not in _FIXED:
            raise
        _fill(made, target, marker)
        return
    try:
        os.rename(made, target)
    except BaseException:
        os.rename(old, target)
        raise


def _fill(made: Path, target: Path, marker: str | None) -> None:
    """Replace a folder's contents; while it is half-written, it lacks the marker."""
    for each in sorted(target.iterdir(), key=lambda each: each.name != marker):
        if _is_ours(each.name, target):
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    for each in sorted(made.iterdir(), key=lambda each: each.name == marker):
        shutil.move(each, target / each.name)
