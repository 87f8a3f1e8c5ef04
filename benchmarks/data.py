"""Results as rows in a CSV that is kept in git, and the README's tables made from them.

A row is keyed by machine, entry, shape of work, versions and commit: measuring the same again
replaces it.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uino_deploy.benchmarks.record import CaseResult, Entry, Record
from uino_deploy.benchmarks.tables import DISTURBED
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file

FILE = "latency.csv"

KEY = (
    "processor",
    "cores",
    "gpu",
    "governor",
    "power_mode",
    "model",
    "variant",
    "image_size",
    "entry",
    "precision",
    "threads",
    "classes",
    "shots",
    "batch",
    "versions",
    "commit",
)
VALUES = (
    "created",
    "method",
    "rounds",
    "others_cpu",
    "status",
    "median_ms",
    "p95_ms",
    "low_ms",
    "high_ms",
    "samples",
    "queries_per_second",
    "logits_relative_l2",
    "mask_iou",
    "miou",
    "reference_miou",
    "steady_mb",
    "peak_mb",
    "device_mb",
    "joules",
    "cold_start_s",
)
COLUMNS = (*KEY, *VALUES)

Row = dict[str, str]


def rows_of(record: Record) -> list[Row]:
    """Return a row for every case of every entry; one without figures for an entry that failed."""
    rows = []
    for entry in record.entries:
        results: list[CaseResult | None] = [*entry.cases] or [None]
        for result in results:
            row = {**_about(record), **_entry(entry), **_case(result)}
            rows.append({column: row.get(column, "") for column in COLUMNS})
    return rows


def append_rows(folder: Path, record: Record) -> Path:
    """Add a record's rows to `latency.csv` in a folder; rows of the same key are replaced.

    Raises:
        InputError: the file is there and has other columns.
    """
    path = folder / FILE
    known = {_key(row): row for row in (read_rows(path) if path.exists() else [])}
    known |= {_key(row): row for row in rows_of(record)}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(known.values())
    with atomic_file(path, force=True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    """Read what `append_rows` wrote.

    Raises:
        InputError: it has other columns.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path} has other columns than this version writes")
        return list(reader)


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def _about(record: Record) -> Row:
    machine, method = record.machine, record.method
    names = ("onnxruntime", "openvino", "tensorrt", "torch", "uino-deploy")
    versions = record.versions
    return {
        "processor": machine.processor,
        "cores": str(machine.cores),
        "gpu": "; ".join(machine.gpus),
        "governor": machine.governor or "",
        "power_mode": machine.power_mode or "",
        "model": record.model.preset,
        "variant": record.model.variant,
        "versions": " ".join(f"{name} {versions[name]}" for name in names if name in versions),
        "commit": record.commit or "",
        "created": record.created,
        "method": method.version,
        "rounds": str(method.rounds),
        "others_cpu": _number(record.others_cpu),
    }


def _entry(entry: Entry) -> Row:
    known, memory = entry.accuracy, entry.memory
    steady, peak, device = (
        (None, None, None) if memory is None else (memory.steady, memory.peak, memory.device)
    )
    return {
        "image_size": str(entry.image_size),
        "entry": entry.name,
        "precision": entry.precision,
        "threads": str(entry.threads),
        "status": entry.status,
        "miou": _number(None if known is None else known.miou),
        "reference_miou": _number(None if known is None else known.reference_miou),
        "steady_mb": _number(None if steady is None else steady / 1e6),
        "peak_mb": _number(None if peak is None else peak / 1e6),
        "device_mb": _number(None if device is None else device / 1e6),
        "joules": _number(entry.joules),
        "cold_start_s": _number(None if entry.cold_start is None else entry.cold_start.median),
    }


def _case(result: CaseResult | None) -> Row:
    if result is None or result.timing is None:
        case = None if result is None else result.case
        shape = {} if case is None else {name: str(getattr(case, name)) for name in _SHAPE}
        return shape
    timing = result.timing
    low, high = timing.spread
    p95 = timing.p95
    return {
        **{name: str(getattr(result.case, name)) for name in _SHAPE},
        "median_ms": _number(1000 * timing.median),
        "p95_ms": _number(None if p95 is None else 1000 * p95),
        "low_ms": _number(1000 * low),
        "high_ms": _number(1000 * high),
        "samples": str(timing.samples),
        "queries_per_second": _number(result.queries_per_second),
        "logits_relative_l2": _number(result.logits_relative_l2),
        "mask_iou": _number(result.mask_iou),
    }


_SHAPE = ("classes", "shots", "batch")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# The README's tables.

_BEGIN, _END = "<!-- benchmark begins -->\n", "<!-- benchmark ends -->\n"
_HEADER = ("", "median ms", "spread", "logits L2", "steady MB", "cold start s")


def table_of(rows: Sequence[Row]) -> str:
    """Return Markdown: for each machine, model and image size, its main case's entries.

    Of several measurements of one entry the latest counts, whatever its commit.
    """
    groups: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row["created"]):
        if (row["classes"], row["shots"], row["batch"]) in {("1", "1", "1"), ("", "", "")}:
            title = (
                f"{row['model']} {row['variant']} at {row['image_size']} px, {row['threads']} "
                f"threads of {row['processor']}" + (f", {row['gpu']}" if row["gpu"] else "")
            )
            groups.setdefault(title, {})[row["entry"]] = row
    if not groups:
        return "No run on a quiet machine is in the file yet.\n"
    return "\n".join(_group(title, list(found.values())) for title, found in groups.items())


def _group(title: str, rows: Sequence[Row]) -> str:
    lines = [f"{title}:\n", _line(_HEADER), _line(["---", *["---:"] * (len(_HEADER) - 1)])]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    if row["status"] != "passed":
        return [row["entry"], row["status"].upper(), *[""] * (len(_HEADER) - 2)]
    disturbed = float(row["others_cpu"] or 0) > DISTURBED
    return [
        row["entry"] + (" (disturbed)" if disturbed else ""),
        row["median_ms"],
        f"{row['low_ms']} to {row['high_ms']}",
        row["logits_relative_l2"],
        row["steady_mb"],
        row["cold_start_s"],
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def renew(text: str, rows: Sequence[Row]) -> str:
    """Return a Markdown text with the rows' tables between its two marks.

    Raises:
        InputError: the text has no marks.
    """
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise InputError("the file has no place for the tables", f"mark it with {_BEGIN.strip()}")
    before, _, rest = text.partition(_BEGIN)
    return before + _BEGIN + table_of(rows) + _END + rest.partition(_END)[2]


def main() -> None:
    """Renew the tables in the Markdown files named on the command line."""
    rows = read_rows(Path(__file__).resolve().parent / "data" / FILE)
    for name in sys.argv[1:]:
        page = Path(name)
        text = renew(page.read_text(encoding="utf-8"), rows)
        with atomic_file(page, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
