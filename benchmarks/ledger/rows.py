"""The names and printed forms of the ledger's records."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

Record = dict[str, Any]
T = TypeVar("T", bound=Hashable)

HEADER = [
    *("kernel", "arch", "type", "shape", "registers", "spilled", "shared", "occupancy"),
    *("programs", "serial steps", "asked MB", "must MB", "unfused MB", "counted on", "error"),
    "full length",
]


def rows(records: Iterable[Record]) -> list[list[str]]:
    """Return one line of cells for each record, in the order of `HEADER`."""
    return [_row(r) for r in records]


def _row(r: Record) -> list[str]:
    counted = r["requested_bytes"] is not None
    errors = (r["relative_l2"], r["relative_l2_full"])
    return [
        kernel_name(r),
        r["arch"],
        r["dtype"],
        shape_text(r["shape"]),
        str(r["registers"]),
        str(r["spill_bytes"]),
        str(r["shared_bytes"]),
        f"{r['occupancy']:.2f}",
        str(r["programs"]),
        str(r["serial_steps"]),
        megabytes(r["requested_bytes"] + r["written_bytes"]) if counted else "-",
        megabytes(r["compulsory_bytes"]),
        megabytes(r["unfused_bytes"]),
        r["counted_on"] or "-",
        *("-" if error is None else f"{error:.1e}" for error in errors),
    ]


def kernel_name(r: Record) -> str:
    """Return the operator and its variant."""
    return f"{r['op']} {r['config']}"


def megabytes(count: float) -> str:
    """Return bytes as megabytes, with three digits if they are few."""
    return f"{count / 1e6:.1f}" if count >= 1e6 else f"{count / 1e6:.3g}"


def shape_text(shape: dict[str, int]) -> str:
    """Return a launch's shape: sequences and plane; layers, queries and support grid; a volume."""
    if "support" in shape:
        grids = f"{shape['query']}x{shape['query']} x {shape['support']}x{shape['support']}"
        return f"{shape['shots']} x {grids}, D {shape['channels']}"
    plane = f"{shape['height']}x{shape['width']}, D {shape['channels']}"
    if "sequences" in shape:
        return f"{shape['sequences']} x {plane}"
    return f"{shape['layers']} x {shape['n_query']} x {plane}"


def unique(values: Iterable[T]) -> list[T]:
    """Return the values without repeats, in order of first appearance."""
    return list(dict.fromkeys(values))
