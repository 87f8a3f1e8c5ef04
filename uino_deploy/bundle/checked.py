"""A piece's files as they were checked: what a runtime reads cannot change after the check.

A runtime opens a graph's weight files itself, by name, when it compiles the graph. So the files are
copied, each hashed as it is read, into a folder that only this user can open, and the runtime reads
the copies; the folder is gone when the piece is compiled.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from uino_deploy.bundle.external_weights import weights_of
from uino_deploy.bundle.manifest import Bundle, Piece
from uino_deploy.errors import DependencyError
from uino_deploy.workspace import work_folder

_CHUNK = 1 << 20


def piece_files(bundle: Bundle, piece: Piece) -> list[str]:
    """Return the names in the bundle of a piece's graph and of the weight files that it reads.

    Raises:
        BundleError: the graph cannot be checked or has changed, or the manifest lacks a file of it.
    """
    folder = PurePosixPath(piece.model).parent
    found = weights_of(bundle.read(piece.model), f"{bundle.root}: {piece.model}")
    names = [(folder / name).as_posix() for name in sorted(found)]
    for name in names:
        bundle.path(name)
    return [piece.model, *names]


@contextmanager
def checked_copy(bundle: Bundle, piece: Piece) -> Iterator[Path]:
    """Yield the path of a piece's graph in a private folder, beside the weight files it reads.

    Raises:
        BundleError: see `piece_files`; or a file has changed since the bundle was opened.
        DependencyError: the folder for temporary files is full or cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(work_folder(None, "uino-deploy-piece"))
        except OSError as error:
            raise _no_room(error) from error
        for name in piece_files(bundle, piece):
            _copy(bundle, name, folder / name)
        yield folder / piece.model


def kernels_folder(arch: str) -> str:
    """Return the folder of an architecture's compiled kernels in a bundle."""
    return f"kernels/{arch}"


def copy_kernels(bundle: Bundle, arch: str, place: Path) -> Path | None:
    """Copy a bundle's kernels for an architecture into a private folder, each file checked.

    Args:
        bundle: opened.
        arch: such as "sm_87".
        place: the new folder.

    Returns:
        The folder that holds them, somewhere in `place`; None if the bundle lists no kernels.

    Raises:
        BundleError: a file has changed since the bundle was opened.
        InputError: the folder is full or cannot be written.
    """
    folder = kernels_folder(arch)
    names = bundle.within(folder)
    for name in names:
        _copy(bundle, name, place / name)
    return place / folder if names else None


def _copy(bundle: Bundle, name: str, target: Path) -> None:
    """Copy a file and compare the hash of what was copied with the manifest's."""
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with bundle.path(name).open("rb") as file, target.open("wb") as copy:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    except FileNotFoundError as error:
        raise bundle.changed(name) from error
    except OSError as error:
        raise _no_room(error) from error
    if digest.hexdigest() != bundle.manifest.files[name].sha256:
        raise bundle.changed(name)


def _no_room(error: OSError) -> DependencyError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return DependencyError(
        f"a piece's weights cannot be copied to {tempfile.gettempdir()}: {error.strerror}",
        f"set TMPDIR to a folder with {'more room' if full else 'room'}",
    )
