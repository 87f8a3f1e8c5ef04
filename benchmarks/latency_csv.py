"""Results as rows of a CSV file in git, and the README's tables made from them.

A row is keyed by machine, entry, shape of work, versions and commit: measuring the same again
replaces it.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uino_deploy import markdown
from uino_deploy.benchmarks.record import CaseResult, Entry, Record, Timing
from uino_deploy.benchmarks.runners.table import PEERS
from uino_deploy.benchmarks.tables import BASELINE, DISTURBED
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file, refuse_existing

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
    "cold_start_uncached_s",
)
COLUMNS = (*KEY, *VALUES)

Row = dict[str, str]


def rows_of(record: Record) -> list[Row]:
    """Return a row for every case of every entry; a failed entry gets one without figures."""
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
        InputError: the file exists and has other columns.
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


def check_table(folder: Path) -> None:
    """Refuse a folder whose `latency.csv` could not take rows, before they are measured.

    Raises:
        InputError: the file cannot be written there, or exists and has other columns.
    """
    refuse_existing(folder / FILE, force=True)
    if (folder / FILE).exists():
        read_rows(folder / FILE)


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `append_rows` wrote.

    Raises:
        InputError: the file is damaged, or has other columns.
    """
    again = "take it from git again"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(f"{path} has other columns than this version writes")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}", again) from error
    for number, row in enumerate(rows, 1):
        if not _whole(row):
            raise InputError(f"{path} is damaged: row {number} is none that is written", again)
    return rows


def _whole(row: Row) -> bool:
    """Return whether a row has every column, and numbers where it must."""
    if row.keys() != set(COLUMNS) or None in row.values():
        return False
    counts = [row[name] for name in _SHAPE]
    if any(counts) and not all(map(_COUNT.fullmatch, counts)):
        return False
    if not all(
        not row[name] or _NUMBER.fullmatch(row[name]) for name in ("median_ms", "others_cpu")
    ):
        return False
    return row["median_ms"] == "" or float(row["median_ms"]) > 0


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
        "cold_start_s": _median(entry.cold_start),
        "cold_start_uncached_s": _median(entry.cold_start_uncached),
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
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?(e[-+][0-9]{1,2})?")
_COUNT = re.compile(r"[1-9][0-9]{0,5}")


def _median(timing: Timing | None) -> str:
    return _number(None if timing is None else timing.median)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


# The README's tables.

_HEADER = (
    *("", "median ms", "spread", "x PyTorch", "logits L2", "steady MB", "peak MB"),
    *("cold start s", "without cache s"),
)
_OTHERS = (
    *("classes", "shots", "batch", "", "median ms", "of the main"),
    *("each further ms", "logits L2"),
)
_MAIN = ("1", "1", "1")


def table_of(rows: Sequence[Row]) -> str:
    """Return Markdown: for each machine, model and image size, the entries of its main case.

    If an entry was measured several times, the latest counts, whatever its commit. A second table
    has the other cases; the main case is one class, one shot and one query, and "each further" is
    the cost of one more.
    """
    groups: dict[str, dict[tuple[str, ...], Row]] = {}
    for row in sorted(rows, key=lambda row: row["created"]):
        title = (
            f"{row['model']} {row['variant']} at {row['image_size']} px, {row['threads']} "
            f"threads of {row['processor']}" + (f", {row['gpu']}" if row["gpu"] else "")
        )
        case = tuple(row[name] for name in _SHAPE)
        key = (row["entry"], *(case if any(case) else _MAIN))
        groups.setdefault(title, {})[key] = row
    if not groups:
        return "The file has no run on a quiet machine yet.\n"
    return "\n".join(_group(title, found) for title, found in groups.items())


def _group(title: str, found: Mapping[tuple[str, ...], Row]) -> str:
    main = {name: row for (name, *case), row in found.items() if tuple(case) == _MAIN}
    others = {key: row for key, row in found.items() if key[1:] != _MAIN and row["median_ms"]}
    text = f"{title}:\n\n" + markdown.table(
        _HEADER, [_cells(row, main) for row in main.values()], True
    )
    if others:
        text += "\n" + markdown.table(
            _OTHERS, [_other(key, row, main) for key, row in others.items()]
        )
    return text


def _cells(row: Row, main: Mapping[str, Row]) -> list[str]:
    if row["status"] != "passed":
        return [row["entry"], row["status"].upper(), *[""] * (len(_HEADER) - 2)]
    disturbed = float(row["others_cpu"] or 0) > DISTURBED
    return [
        row["entry"] + (" (disturbed)" if disturbed else ""),
        row["median_ms"],
        f"{row['low_ms']} to {row['high_ms']}",
        _ratio(main.get(PEERS[BASELINE].title), row),
        row["logits_relative_l2"],
        row["steady_mb"],
        row["peak_mb"],
        row["cold_start_s"],
        row["cold_start_uncached_s"],
    ]


def _other(key: tuple[str, ...], row: Row, main: Mapping[str, Row]) -> list[str]:
    single = main.get(key[0])
    ratio, further = _ratio(row, single), ""
    if single is not None and ratio:
        added = float(row["median_ms"]) - float(single["median_ms"])
        further = f"{added / (max(map(int, key[1:])) - 1):.4g}"
    return [*key[1:], key[0], row["median_ms"], ratio, further, row["logits_relative_l2"]]


def _ratio(above: Row | None, below: Row | None) -> str:
    """Return the ratio of two medians of the same run; empty if one is missing."""
    if above is None or below is None or above["created"] != below["created"]:
        return ""
    if not above["median_ms"] or not below["median_ms"]:
        return ""
    return f"{float(above['median_ms']) / float(below['median_ms']):.2f}"


def renew(text: str, rows: Sequence[Row]) -> str:
    """Return a Markdown text with the rows' tables between its two marks.

    Raises:
        InputError: the text has no marks.
    """
    return markdown.renew(text, "benchmark", table_of(rows))


def main() -> None:
    """Update the tables in the Markdown files named on the command line."""
    rows = read_rows(Path(__file__).resolve().parent / "data" / FILE)
    for name in sys.argv[1:]:
        markdown.rewrite(Path(name), lambda text: renew(text, rows))


if __name__ == "__main__":
    main()
