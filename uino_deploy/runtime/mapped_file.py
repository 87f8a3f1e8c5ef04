"""A file in memory whose pages can be given back once they have been read."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

_PAGES = Path("/proc/self/smaps")


def map_file(path: Path) -> mmap.mmap:
    """Map a file into writable memory; writes never reach the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty.
    """
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def give_back(memory: mmap.mmap) -> bool:
    """Release a mapped file's pages to the system; they are read again on access.

    Does nothing unless that is known to be safe: a written page exists nowhere else, and only
    Linux reports which pages were written.

    Args:
        memory: from `map_file`.

    Returns:
        Whether the pages were given back.
    """
    if not _PAGES.exists() or _written(np.frombuffer(memory, np.uint8).ctypes.data):
        return False
    memory.madvise(mmap.MADV_DONTNEED)
    return True


def _written(address: int) -> bool:
    """Return whether a page of the mapping at an address is this process's own."""
    inside = False
    for line in _PAGES.read_text(encoding="utf-8", errors="replace").splitlines():
        first, *_ = line.split(maxsplit=1)
        if not first.endswith(":"):  # a mapping's first line begins with its addresses
            begin, end = (int(word, 16) for word in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "Anonymous:":
            return int(line.split()[1]) > 0
    return True
