"""The journal of executed programs, from which an interrupted ledger continues."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

_TARGET_LINES = re.compile(r"^\.(version|target)\b.*$", re.MULTILINE)


class Journal:
    """Results by key, one JSON line each; kept only in memory without a file.

    Delete the file after a change of the executor: the keys describe only what was executed.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        if file is not None and file.exists():
            # An unfinished line was being written when its process was killed.
            for line in file.read_text().split("\n")[:-1]:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]

    def get(self, key: str) -> Any:
        """Return a result, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store a result; it is in the file when this returns."""
        self._known[key] = value
        if self._file is not None:
            with self._file.open("a") as lines:
                lines.write(json.dumps({"key": key, "value": value}) + "\n")


def program_key(ptx: str) -> str:
    """Name a program by its text, without its target: the target does not change the execution."""
    return hashlib.sha256(_TARGET_LINES.sub("", ptx).encode()).hexdigest()[:16]
