"""A benchmark's page: speed beside accuracy, as `uino_deploy.page` shows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from uino_deploy.benchmarks import tables
from uino_deploy.benchmarks.record import (
    MAIN,
    Accuracy,
    Case,
    Entry,
    Record,
    Timing,
    save_record,
)
from uino_deploy.charts import Bar, Chart, Point, bars, lines, points
from uino_deploy.files import atomic_directory
from uino_deploy.page import Block, Section, Table, Text, Verdict, page

RECORD, PAGE, TRACES = "record.json", "report.html", "traces"
OURS, PEER, PEAK = "uino-deploy", "peer", "more at the peak"

# Stages with other names in a chart: "decode" is of a file, "decoder" of a mask.
STAGES = {"decode": "decode image", "decoder": "mask decoder"}


def write_outputs(folder: Path, record: Record, traces: Path, force: bool) -> None:
    """Write a record, its page and its traces into a folder, whole or not at all.

    Raises:
        OutputExists: the folder exists, and `force` is not given or it does not hold a benchmark.
        DependencyError: a library that draws the page is not installed.
    """
    with atomic_directory(folder, force, marker=RECORD) as temporary:
        save_record(temporary / RECORD, record)
        (temporary / PAGE).write_text(render(record), encoding="utf-8")
        if traces.is_dir():
            shutil.copytree(traces, temporary / TRACES)


def render(record: Record) -> str:
    """Return the page."""
    return page(
        f"{record.model.preset} {record.model.variant}: speed beside accuracy",
        [line for line in tables.situation(record) if not line.startswith("DISTURBED")],
        _verdicts(record),
        [
            Section("Results", _results(record)),
            *(_group(record, size, threads) for size, threads in _groups(record)),
            Section("Scaling with size and threads", _sizes(record)),
            Section("Where the time goes", _profiles(record)),
            Section("Accuracy and its budget", [_budgets(record)]),
            Section("Method", [Text(METHOD_WORDS), _facts(record)]),
        ],
    )


def _verdicts(record: Record) -> list[Verdict]:
    failed = len(record.failures)
    text = f"FAILED: {failed} of {len(record.entries)}"
    verdict = Verdict(text, "failed") if failed else Verdict("PASSED", "passed")
    disturbed = [line for line in tables.situation(record) if line.startswith("DISTURBED")]
    return [verdict, *(Verdict(line, "disturbed") for line in disturbed)]


def _results(record: Record) -> list[Block]:
    """Return the table of all entries, and the reasons why some have no speed."""
    header, rows = tables.entry_rows(record)
    table = Table(
        "All entries",
        ["entry", *header[1:-1], "status"],
        [[*row[:-1], row[-1].partition(":")[0] or "PASSED"] for row in rows],
    )
    without = [
        [entry.name, entry.status.upper(), entry.reason]
        for entry in record.entries
        if entry.status != "passed"
    ]
    reasons = Table("Entries without a speed", ["entry", "status", "reason"], without)
    return [table, reasons] if without else [table]


def _groups(record: Record) -> list[tuple[int, int]]:
    return list(dict.fromkeys((entry.image_size, entry.threads) for entry in record.entries))


def _group(record: Record, image_size: int, threads: int) -> Section:
    """Draw the charts of one image size and thread count; the fastest entry first in each."""
    timed = [
        (entry.main.median, entry)
        for entry in record.entries
        if (entry.image_size, entry.threads) == (image_size, threads) and entry.main is not None
    ]
    entries = [entry for _, entry in sorted(timed, key=lambda pair: pair[0])]
    drawn = [
        _latency(entries),
        _stages(entries),
        _against(entries),
        _memory(entries),
        _cold(entries),
        *_scaling(record, entries),
    ]
    heading = f"{image_size} px, {threads} thread{'' if threads == 1 else 's'}"
    return Section(heading, [chart for chart in drawn if chart.rows])


def _timing_bar(entry: Entry, label: str, timing: Timing, unit: float, note: str) -> Bar:
    low, high = timing.spread
    series = PEER if entry.peer else OURS
    return Bar(label, {series: unit * timing.median}, note, (unit * low, unit * high))


def _latency(entries: Sequence[Entry]) -> Chart:
    rows = [
        _timing_bar(entry, entry.name, entry.main, 1000, tables.ms(entry.main.median))
        for entry in entries
        if entry.main is not None
    ]
    note = "Median; the whisker spans the rounds' medians."
    return bars("One query, end to end", "ms", (OURS, PEER), rows, note)


def _stages(entries: Sequence[Entry]) -> Chart:
    rows = []
    for entry in entries:
        parts = {STAGES.get(n, n): 1000 * timing.median for n, timing in entry.stages.items()}
        if parts:
            rows.append(Bar(entry.name, parts, tables.ms(sum(parts.values()) / 1000)))
    series = list(dict.fromkeys(name for row in rows for name in row.parts))
    note = (
        "Parts are timed in separate queries, with a wait after each part, so their sum "
        "differs from the end-to-end time."
    )
    return bars("One query, part by part", "ms", series, rows, note)


def _against(entries: Sequence[Entry]) -> Chart:
    marks = [
        Point(
            entry.name,
            1000 * entry.main.median,
            max(entry.accuracy.logits_relative_l2, 1e-9),
            PEER if entry.peer else OURS,
        )
        for entry in entries
        if entry.main is not None and entry.accuracy is not None
    ]
    return points(
        "Latency against accuracy: left and low is better",
        "latency, ms",
        "relative L2 error of the logits",
        (OURS, PEER),
        marks,
    )


def _memory(entries: Sequence[Entry]) -> Chart:
    rows = []
    for entry in entries:
        memory = entry.memory
        if memory is not None and memory.steady is not None and memory.peak is not None:
            more = max(0, memory.peak - memory.steady)
            parts = {PEER if entry.peer else OURS: memory.steady / 1e6, PEAK: more / 1e6}
            note = f"{tables.megabytes(memory.steady)} ({tables.megabytes(memory.peak)})"
            rows.append(Bar(entry.name, parts, note))
    note = "Steady state between queries; in brackets, the peak since the process started."
    return bars("Resident memory of the process", "MB", (OURS, PEER, PEAK), rows, note)


def _cold(entries: Sequence[Entry]) -> Chart:
    rows = [
        _timing_bar(entry, label, timing, 1, f"{timing.median:.2f}")
        for entry in entries
        for label, timing in (
            (entry.name, entry.cold_start),
            (f"{entry.name}, no cache", entry.cold_start_uncached),
        )
        if timing is not None
    ]
    return bars("From the start of a process to its first mask", "s", (OURS, PEER), rows)


def _scaling(record: Record, entries: Sequence[Entry]) -> list[Chart]:
    """Draw the growth of the time with each of classes, shots and batch that was varied."""
    drawn = []
    for name, axis in (("classes", "classes"), ("shots", "shots"), ("batch", "queries at once")):
        cases = [MAIN, *(case for case in record.method.cases if getattr(case, name) > 1)]
        series = {entry.name: _series(entry, cases, name) for entry in entries}
        series = {key: line for key, line in series.items() if len(line) > 1}
        drawn.append(lines(f"Growing with {axis}", axis, "ms", series))
    return drawn


def _series(entry: Entry, cases: Sequence[Case], name: str) -> list[tuple[float, float]]:
    timings = {result.case: result.timing for result in entry.cases}
    values = [(getattr(case, name), timings.get(case)) for case in cases]
    return [(float(count), 1000 * timing.median) for count, timing in values if timing is not None]


def _sizes(record: Record) -> list[Chart]:
    """Draw latency over image size and over threads, if several were measured."""
    drawn = []
    kinds: tuple[tuple[str, Callable[[Entry], int]], ...] = (
        ("image size, px", lambda entry: entry.image_size),
        ("threads", lambda entry: entry.threads),
    )
    for axis, value in kinds:
        if len({value(entry) for entry in record.entries}) > 1:
            series: dict[str, list[tuple[float, float]]] = {}
            for entry in record.entries:
                if entry.main is not None:
                    point = (float(value(entry)), 1000 * entry.main.median)
                    series.setdefault(entry.name, []).append(point)
            drawn.append(lines(f"One query over {axis}", axis, "ms", series))
    return drawn


def _profiles(record: Record) -> list[Block]:
    header, rows = tables.layer_rows(record)
    if not rows:
        return []
    words = [
        "The profiler itself takes time: compare the shares, not the sums. Open the traces beside "
        "this page in Perfetto.",
        *tables.attention_lines(record),
    ]
    return [Text(words), Table("Operators", [*header[:-1], "attention"], rows)]


def _budgets(record: Record) -> Table:
    header = ["entry", "reference", "logits L2", "allowed", "mask IoU", "at least", "mIoU"]
    known = [(entry.name, entry.accuracy) for entry in record.entries if entry.accuracy]
    rows = [
        [
            name,
            accuracy.reference,
            f"{accuracy.logits_relative_l2:.2e}",
            f"{accuracy.logits_allowed:.0e}",
            _optional(accuracy.mask_iou, ".4f"),
            _optional(accuracy.mask_iou_floor, ".3f"),
            _optional(accuracy.miou, ".2f"),
            _optional(accuracy.reference_miou, ".2f"),
            _worst_piece(accuracy),
        ]
        for name, accuracy in known
    ]
    return Table("Errors and their budgets", [*header, "PyTorch's mIoU", "worst piece"], rows)


def _worst_piece(accuracy: Accuracy) -> str:
    if not accuracy.pieces:
        return tables.NOTHING
    worst = max(accuracy.pieces, key=lambda piece: piece.relative_l2 / piece.allowed)
    return f"{worst.piece}.{worst.output} {worst.relative_l2:.1e} of {worst.allowed:.0e}"


def _facts(record: Record) -> Table:
    """Return the table of the machine, the versions and the turns."""
    machine, method = record.machine, record.method
    turn = f"{method.iterations} queries" if method.iterations else f"{method.seconds:g} s"
    rows = [
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", f"{tables.megabytes(machine.memory)} MB"),
        ("GPUs", ", ".join(machine.gpus) or "none"),
        ("clocks", "; ".join(machine.gpu_clocks) or _optional(machine.clock_limit_mhz, ".0f")),
        ("governor, power mode", f"{machine.governor or '-'}, {machine.power_mode or '-'}"),
        ("used by other processes", _optional(record.others_cpu, ".1%")),
        ("measured", f"{record.created}, commit {record.commit or '-'}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
        (
            "turns",
            f"{method.rounds} rounds; {method.warmup} untimed queries, then {turn}; "
            f"{method.cold_starts} cold starts",
        ),
    ]
    return Table("Machine and run", ["item", "value"], rows)


METHOD_WORDS = (
    "The time is what a user waits for: a photograph is decoded, preprocessed and segmented with "
    "an enrolled class, and the mask is resized to the photograph. Enrolling is not included.",
    "Each entry runs in its own process with the stated number of threads. Every entry has a "
    "turn in every round, so that a disturbance hits all of them alike. The bar "
    "is the median of all samples, the whisker the range of the rounds' medians. A percentile is "
    "given where at least one sample lies beyond it: p90 from 10 samples, p95 from 20, p99 from "
    "100.",
    "Accuracy is the relative L2 distance of the logits from float32 PyTorch with the reference "
    "operators, on the same photographs; the worst of all cases counts. An entry over its error "
    "budget is marked FAILED and not timed.",
    "Steady memory is the resident set between queries after the first round, file mappings "
    "included; the peak is the largest since the process began.",
)


def _optional(value: float | None, form: str) -> str:
    return tables.NOTHING if value is None else format(value, form)
