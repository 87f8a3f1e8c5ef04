"""Hidden folders to work in: locked while their owner lives, removed by the next run after it."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uino_deploy.errors import Degraded

# The name of the folder takes 25 bytes more; a file system allows 255, some encrypted ones 143.
_NAME_BYTES = 100
# How a system says that it locks no folders.
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF}


@contextmanager
def work_folder(
    parent: Path | None,
    name: str,
    rescue: Callable[[Path], None] = lambda _left: None,
) -> Iterator[Path]:
    """Yield a new empty folder, `.NAME.tmp-...`, which is removed when the block ends.

    Nobody removes it for an owner that is killed (kill -9, out of memory), so what dead owners left
    under the same name goes first. A folder's owner is alive while it holds the folder's lock;
    what another machine or an earlier boot left stays, for its locks may be invisible here, and so
    does everything where the file system has no locks.

    Args:
        parent: receives the folder, such as the folder of the output; the system's temporary folder
            when None.
        name: the output's name, or the command's.
        rescue: called with each folder that a dead owner left, before it is removed.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    stem = work_folder_stem(name)
    _sweep(parent, stem, rescue)
    folder, handle = _make(parent, stem)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def work_folder_stem(name: str) -> str:
    """Return how the names of an output's workspaces begin; a long name is shortened."""
    return f".{os.fsencode(name)[:_NAME_BYTES].decode(errors='ignore')}.tmp-"


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock while the block runs; yield whether it is held.

    Without locks (Windows, some network file systems) concurrent changes go undetected: the block
    runs as if the lock were held, and a warning says so.

    Args:
        folder: the folder to change under the lock, such as a bundle.
        wait: wait until the lock is free; otherwise yield False at once.
    """
    handle = None
    try:
        handle = _lock(folder, wait)
        held = handle is not None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        held = True
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): let no other command change it now",
            Degraded,
            stacklevel=3,
        )
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    """Return an open handle that holds a folder's lock; None where another process holds it.

    Raises:
        OSError: the folder does not exist, or the file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "Windows locks no folders")
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _make(parent: Path, stem: str) -> tuple[Path, int | None]:
    """Make a folder for its owner alone and lock it, where it can be locked."""
    while True:
        folder = parent / f"{stem}{_machine()}{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            handle = _lock(folder, wait=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return folder, None
        # Before it was locked, another run may have taken it for a dead one's.
        if folder.is_dir():
            return folder, handle
        if handle is not None:
            os.close(handle)


def _sweep(parent: Path, stem: str, rescue: Callable[[Path], None]) -> None:
    """Remove this user's folders whose owner is dead."""
    if sys.platform == "win32":
        return
    try:
        found = [each for each in os.scandir(parent) if each.name.startswith(stem + _machine())]
    except OSError:  # it is made, or refused, where it is written to
        return
    for each in found:
        try:
            if not each.is_dir(follow_symlinks=False) or each.stat().st_uid != os.geteuid():
                continue
            handle = _lock(Path(each.path), wait=False)
        except OSError:  # it ended by itself meanwhile, or has no locks
            continue
        if handle is not None:
            rescue(Path(each.path))
            shutil.rmtree(each.path, ignore_errors=True)
            os.close(handle)


def _machine() -> str:
    """Return eight characters for this machine since it started: its containers share its locks."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        told = platform.node()
    return hashlib.sha256(told.encode()).hexdigest()[:8]
