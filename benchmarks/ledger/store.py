"""The ledger as a file: JSON with one record per line, for small diffs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.inputs import read_regular

_MOST_BYTES = 1 << 28
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
_Real = Annotated[float, msgspec.Meta(ge=0, le=1e18)]

# The whole matrix as last counted; the README describes how.
LEDGER = Path(__file__).with_name("ledger.json")


class _Shape(msgspec.Struct):
    channels: _Count
    height: _Count | None = None
    width: _Count | None = None
    sequences: _Count | None = None
    layers: _Count | None = None
    n_query: _Count | None = None
    shots: _Count | None = None
    query: _Count | None = None
    support: _Count | None = None

    def __post_init__(self) -> None:
        plane = (self.height, self.width)
        volume = (self.shots, self.query, self.support)
        ways = ((*plane, self.sequences), (*plane, self.layers, self.n_query), volume)
        if all(None in way for way in ways):
            raise ValueError("a shape is of no operator")


class _Record(msgspec.Struct):
    """What tables and pages read of a record; the rest is kept as it is."""

    presets: list[str]
    op: str
    config: str
    arch: str
    dtype: str
    shape: _Shape
    cuda: str
    registers: _Count
    spill_bytes: _Count
    local_bytes: _Count
    shared_bytes: _Count
    occupancy: _Real
    programs: _Count
    serial_steps: _Count
    requested_bytes: _Count | None
    written_bytes: _Count | None
    compulsory_bytes: Annotated[int, msgspec.Meta(gt=0, le=1 << 60)]
    unfused_bytes: _Count
    counted_on: str | None
    dram_bytes: dict[str, _Count]
    relative_l2: _Real | None
    relative_l2_full: _Real | None
    floor_us: dict[str, _Real]
    mamba_ssm_requested_bytes: _Count | None = None
    mamba_ssm_written_bytes: _Count | None = None

    def __post_init__(self) -> None:
        for asked, written in (
            (self.requested_bytes, self.written_bytes),
            (self.mamba_ssm_requested_bytes, self.mamba_ssm_written_bytes),
        ):
            if asked is not None and written is None:
                raise ValueError("bytes are asked for, and how many are written is missing")


class _Ledger(msgspec.Struct):
    kernels: list[_Record]


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
        data = read_regular(file, "ledger", _MOST_BYTES)
        decode_json(data, _Ledger)
        records: list[dict[str, Any]] = decode_json(data, dict[str, Any])["kernels"]
    except (OSError, DocumentError) as error:
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
