"""Input files: regular ones of a bounded size, found by name; and notices of what was assumed."""

from __future__ import annotations

import os
import stat
import unicodedata
import warnings
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

from uino_deploy.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class InputNotice(UserWarning):
    """What was assumed about an input, or left out of it; `kind` is shared by all of one sort."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def notice(kind: str, message: str) -> None:
    """Tell the user what was assumed about an input, as an `InputNotice`."""
    warnings.warn(InputNotice(kind, message), stacklevel=2)


def few(texts: Sequence[str], most: int = 3) -> str:
    """Return the first texts of a list on one line, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def open_regular(path: str | Path, what: str, limit: int) -> BufferedReader:
    """Open a file for reading, never waiting for one that is a pipe or a device.

    Args:
        path: the file, or a link to it.
        what: what it holds, for the message, such as "image".
        limit: the most bytes that it may have.

    Raises:
        InputError: it is no regular file, or larger than the limit.
        OSError: it does not exist or cannot be opened.
    """
    _check(os.stat(path), path, what, limit)
    # It may have been replaced by a pipe in between.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check(os.fstat(file.fileno()), path, what, limit)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: str | Path, what: str, limit: int) -> bytes:
    """Return a file's bytes; arguments and errors as in `open_regular`."""
    with open_regular(path, what, limit) as file:
        return file.read()


def find_file(path: Path) -> Path:
    """Return the path of an existing file whose name differs at most in Unicode's composed form.

    macOS writes decomposed names (NFD), most others composed ones (NFC). A path without a file is
    returned as it is.
    """
    if os.path.lexists(path) or path.name.isascii() or not os.path.isdir(path.parent):
        return path
    wanted = nfc(path.name)
    return next((each for each in path.parent.iterdir() if nfc(each.name) == wanted), path)


def nfc(text: str) -> str:
    """Return a text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def printable(path: object) -> str:
    """Return a path, or another name, as text that any encoding of Unicode takes.

    Wrong bytes become %E9 and so on.

    On Linux a name may hold any bytes; Python keeps those that are not UTF-8 as lone surrogates.
    """
    return "".join(
        f"%{ord(character) - 0xDC00:02X}" if "\udc80" <= character <= "\udcff" else character
        for character in str(path)
    )


def _check(state: os.stat_result, path: str | Path, what: str, limit: int) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = _KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise InputError(f"{what} {printable(path)} cannot be read: it is {kind}, not a file")
    if state.st_size > limit:
        raise InputError(
            f"{what} {printable(path)} has {state.st_size} bytes, the limit is {limit}",
            "split it, or take out what is not needed",
        )


def json_text(data: bytes) -> bytes:
    """Return a JSON file's bytes as UTF-8 without a byte order mark.

    Raises:
        UnicodeDecodeError: it is UTF-16 and damaged.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16").encode()
    return data.removeprefix(b"\xef\xbb\xbf")
