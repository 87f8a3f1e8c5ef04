"""The ledger as a file: JSON with one record per line, for small diffs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uino_deploy.errors import InputError
from uino_deploy.inputs import read_regular

# The whole matrix as last counted; the README describes how.
_MOST_BYTES = 256 << 20
LEDGER = Path(__file__).with_name("ledger.json")


def text_of(records: Iterable[dict[str, Any]]) -> str:
    """Return the file's text."""
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    return f'{{"kernels": [\n{lines}\n]}}\n'


def load(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file.

    Raises:
        InputError: the file does not exist, or is not a ledger.
    """
    try:
        records: list[dict[str, Any]] = json.loads(read_regular(file, "ledger", _MOST_BYTES))[
            "kernels"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a ledger: {error}", "write one with kernels report --save"
        ) from error
    return records


def select(
    records: Iterable[dict[str, Any]], presets: list[str], archs: list[str], dtypes: list[str]
) -> list[dict[str, Any]]:
    """Return the records of these presets, architectures and types; an empty list means all."""
    return [
        r
        for r in records
        if (not presets or set(presets) & set(r["presets"]))
        and (not archs or r["arch"] in archs)
        and (not dtypes or r["dtype"] in dtypes)
    ]
