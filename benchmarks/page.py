"""A record as one HTML page that needs nothing beside it, meant to be looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from uino_deploy.benchmarks import tables
from uino_deploy.benchmarks.charts import OURS, Bar, Point, lines, points, stacked_bars
from uino_deploy.benchmarks.record import MAIN, Case, Entry, Record, save_record
from uino_deploy.files import atomic_directory

RECORD, PAGE, TRACES = "record.json", "report.html", "traces"


def write_outputs(folder: Path, record: Record, traces: Path, force: bool) -> None:
    """Write a record, its page and its traces into a folder, whole or not at all.

    Raises:
        OutputExists: the folder is there, and `force` is not given or it is no benchmark's.
    """
    with atomic_directory(folder, force, marker=RECORD) as temporary:
        save_record(temporary / RECORD, record)
        (temporary / PAGE).write_text(render(record), encoding="utf-8")
        if traces.is_dir():
            shutil.copytree(traces, temporary / TRACES)


def render(record: Record) -> str:
    """Return the page."""
    title = f"{record.model.preset} {record.model.variant}: speed beside accuracy"
    parts = [
        _header(title, record),
        '<main><div class="wide">',
        _table(*_without_reasons(*tables.entry_rows(record))),
        "</div>",
        _failures(record),
        *[_group(record, *key) for key in _groups(record)],
        _image_sizes(record),
        _profiles(record),
        _method(record),
        "</main>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _header(title: str, record: Record) -> str:
    said = "".join(f"<p>{escape(line)}</p>" for line in tables.situation(record))
    failed = len(record.failures)
    verdict = f"FAILED: {failed} of {len(record.entries)}" if failed else "PASSED"
    kind = "failed" if failed else "passed"
    return (
        f"<header><div><h1>{escape(title)}</h1>{said}</div>"
        f'<div class="verdict {kind}">{verdict}</div></header>'
    )


def _without_reasons(header: list[str], rows: list[list[str]]) -> tables.Table:
    """Keep the status of each row; the reasons follow under the table."""
    return header, [[*row[:-1], row[-1].partition(":")[0]] for row in rows]


def _failures(record: Record) -> str:
    """List what has no speed and why."""
    items = [
        f"<li><b>{escape(entry.name)}</b> {entry.status}: {escape(entry.reason)}</li>"
        for entry in record.entries
        if entry.status != "passed"
    ]
    return f"<h2>Without a speed</h2><ul>{''.join(items)}</ul>" if items else ""


def _groups(record: Record) -> list[tuple[int, int]]:
    return list(dict.fromkeys((entry.image_size, entry.threads) for entry in record.entries))


def _group(record: Record, image_size: int, threads: int) -> str:
    """Draw the charts of one image size and thread count."""
    entries = [
        entry
        for entry in record.entries
        if (entry.image_size, entry.threads) == (image_size, threads) and entry.main is not None
    ]
    if not entries:
        return ""
    plural = "" if threads == 1 else "s"
    charts = [
        ("One query, end to end: median, and the range of the rounds' medians", _latency(entries)),
        ("The same, part by part", _stages(entries)),
        ("Latency against accuracy: left and low is better", _against(entries)),
        ("Resident memory of the process", _memory(entries)),
        ("From the start of a process to its first mask", _cold(entries)),
        *_scaling(record, entries),
    ]
    figures = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"
        for caption, chart in charts
        if chart
    )
    return f'<h2>{image_size} px, {threads} thread{plural}</h2><div class="charts">{figures}</div>'


def _latency(entries: Sequence[Entry]) -> str:
    bars = []
    for entry in sorted(entries, key=lambda each: each.main.median if each.main else 0):
        timing = entry.main
        if timing is not None:
            low, high = timing.spread
            bars.append(
                Bar(
                    entry.name,
                    {"peer" if entry.peer else OURS: 1000 * timing.median},
                    tables.ms(timing.median),
                    1000 * low,
                    1000 * high,
                    entry.peer,
                )
            )
    return stacked_bars(bars, "ms")


def _stages(entries: Sequence[Entry]) -> str:
    bars = []
    for entry in entries:
        parts = {name: 1000 * timing.median for name, timing in entry.stages.items()}
        if parts:
            total = tables.ms(sum(parts.values()) / 1000)
            bars.append(Bar(entry.name, parts, total))
    return stacked_bars(bars, "ms") if bars else ""


def _against(entries: Sequence[Entry]) -> str:
    found = [
        Point(
            entry.name,
            1000 * entry.main.median,
            max(entry.accuracy.logits_relative_l2, 1e-9),
            entry.peer,
        )
        for entry in entries
        if entry.main is not None and entry.accuracy is not None
    ]
    return points(found, "ms", "relative L2 error of the logits")


def _memory(entries: Sequence[Entry]) -> str:
    bars = []
    for entry in entries:
        memory = entry.memory
        if memory is not None and memory.steady is not None and memory.peak is not None:
            parts = {
                "steady": memory.steady / 1e6,
                "more at its peak": max(0, memory.peak - memory.steady) / 1e6,
            }
            note = f"{tables.megabytes(memory.steady)} ({tables.megabytes(memory.peak)})"
            bars.append(Bar(entry.name, parts, note, faint=entry.peer))
    return stacked_bars(bars, "MB") if bars else ""


def _cold(entries: Sequence[Entry]) -> str:
    bars = []
    for entry in entries:
        for name, timing in (
            (entry.name, entry.cold_start),
            (f"{entry.name}, no cache", entry.cold_start_uncached),
        ):
            if timing is not None:
                note = f"{timing.median:.2f}"
                kind = {"peer" if entry.peer else OURS: timing.median}
                bars.append(Bar(name, kind, note, *timing.spread, faint=entry.peer))
    return stacked_bars(bars, "s") if bars else ""


def _scaling(record: Record, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Draw how the time grows with each of classes, shots and batch that was varied."""
    found = []
    for name, axis in (("classes", "classes"), ("shots", "shots"), ("batch", "queries at once")):
        cases = [MAIN] + [case for case in record.method.cases if getattr(case, name) > 1]
        if len(cases) > 1:
            series = {entry.name: _series(entry, cases, name) for entry in entries}
            series = {key: line for key, line in series.items() if len(line) > 1}
            if series:
                found.append((f"Growing with {axis}", lines(series, axis, "ms")))
    return found


def _series(entry: Entry, cases: Sequence[Case], name: str) -> list[tuple[float, float]]:
    timings = {result.case: result.timing for result in entry.cases}
    line = []
    for case in cases:
        timing = timings.get(case)
        if timing is not None:
            line.append((float(getattr(case, name)), 1000 * timing.median))
    return line


def _image_sizes(record: Record) -> str:
    """Draw latency over image size and over threads, where several were measured."""
    figures = []
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
            caption = f"One query over {axis}"
            figures.append(
                f"<figure><figcaption>{caption}</figcaption>{lines(series, axis, 'ms')}</figure>"
            )
    return f'<h2>Scaling</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _profiles(record: Record) -> str:
    header, rows = tables.layer_rows(record)
    if not rows:
        return ""
    notes = "".join(f"<p>{escape(line)}</p>" for line in tables.attention_lines(record))
    return (
        "<h2>Where the time goes</h2><p>The profiler itself costs time; shares count, not sums. "
        "The traces beside this page open in Perfetto.</p>"
        f'{notes}<div class="wide">{_table(header, rows)}</div>'
    )


def _method(record: Record) -> str:
    """State the method, the accuracy's budget, the machine and the versions."""
    machine, method = record.machine, record.method
    budgets = [
        [
            entry.name,
            entry.accuracy.reference,
            f"{entry.accuracy.logits_relative_l2:.2e}",
            f"{entry.accuracy.logits_allowed:.0e}",
            _optional(entry.accuracy.mask_iou, ".4f"),
            _optional(entry.accuracy.mask_iou_floor, ".3f"),
            _optional(entry.accuracy.miou, ".2f"),
            _optional(entry.accuracy.reference_miou, ".2f"),
            _worst_piece(entry),
        ]
        for entry in record.entries
        if entry.accuracy is not None
    ]
    header = ["", "reference", "logits L2", "allowed", "mask IoU", "at least", "mIoU", "PyTorch's"]
    facts = [
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", f"{tables.megabytes(machine.memory)} MB"),
        ("GPUs", ", ".join(machine.gpus) or "none"),
        ("clocks", "; ".join(machine.gpu_clocks) or _optional(machine.clock_limit_mhz, ".0f")),
        ("governor, power mode", f"{machine.governor or '-'}, {machine.power_mode or '-'}"),
        ("used by others", _optional(record.others_cpu, ".1%")),
        ("measured", f"{record.created}, commit {record.commit or '-'}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
        (
            "turns",
            f"{method.rounds} rounds; {method.warmup} untimed, then {method.iterations or ''}"
            f"{'' if method.iterations else f'{method.seconds:g} s of'} queries; "
            f"{method.cold_starts} cold starts",
        ),
    ]
    return (
        '<h2>Accuracy and its budget</h2><div class="wide">'
        f"{_table([*header, 'worst piece'], budgets)}</div>"
        '<h2>How it was measured</h2><div class="method">'
        + "".join(f"<p>{escape(text)}</p>" for text in METHOD_WORDS)
        + f'</div><div class="wide">{_table(["", ""], [list(fact) for fact in facts])}</div>'
    )


METHOD_WORDS = (
    "Timed is what a user waits for: a photograph's file is decoded, preprocessed, segmented with "
    "an enrolled class, and the mask is brought to the photograph's own size. Enrolling is not "
    "part of it.",
    "Each entry runs in a process of its own with the stated number of threads. Round after "
    "round every entry has its turn, so that what disturbs the machine disturbs all alike. The "
    "bar is the median of all samples, the whisker the range of the rounds' medians. A percentile "
    "is given where at least one sample lies beyond it: p90 from 10 samples on, p95 from 20, p99 "
    "from 100.",
    "Accuracy is the relative L2 distance of the logits from float32 PyTorch with the literal "
    "operators, on the same photographs, over all cases, the worst counted. What is over the "
    "budget of its precision has failed and is not timed.",
    "Steady memory is the resident set between queries after the first round, file mappings "
    "included; the peak is the largest since the process began. Parts are timed in queries of "
    "their own, each part waited for.",
)


def _worst_piece(entry: Entry) -> str:
    if entry.accuracy is None or not entry.accuracy.pieces:
        return tables.NOTHING
    worst = max(entry.accuracy.pieces, key=lambda piece: piece.relative_l2 / piece.allowed)
    return f"{worst.piece}.{worst.output} {worst.relative_l2:.1e} of {worst.allowed:.0e}"


def _optional(value: float | None, form: str) -> str:
    return tables.NOTHING if value is None else format(value, form)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = [all(_is_number(row[i]) for row in rows) and i > 0 for i in range(len(header))]
    head = "".join(
        f"<th{' class=right' if flush else ''}>{escape(cell)}</th>"
        for cell, flush in zip(header, right, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=right' if flush else ''}>{escape(cell)}</td>"
            for cell, flush in zip(row, right, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_number(text: str) -> bool:
    return text in {"", tables.NOTHING} or text[:1].isdigit() or text[:2] in {"-0", "-1"}


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #667085; --paper: #f6f7f9; --card: #fff;
  --line: #e3e6ec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --paper: #12151b;
  --card: #1b2029; --line: #2c3340; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { display: flex; gap: 32px; align-items: flex-start; justify-content: space-between;
  padding-top: 36px; padding-bottom: 18px; }
h1 { margin: 0 0 8px; font-size: 28px; letter-spacing: -0.02em; line-height: 1.2; }
header p { margin: 0; color: var(--soft); }
h2 { margin: 40px 0 10px; font-size: 20px; letter-spacing: -0.01em; }
.verdict { padding: 10px 20px; border-radius: 10px; font-weight: 700; letter-spacing: 0.04em;
  color: #fff; white-space: nowrap; }
.passed { background: #12934f; } .failed { background: #c62f33; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 14px; }
figure, .wide { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 14px 18px; } .wide { overflow-x: auto; }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 8px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
svg .number { fill: var(--ink); font-weight: 600; } .grid { stroke: var(--line); }
svg .inside { fill: #fff; font-size: 10px; text-anchor: middle; font-weight: 700; }
.whisker { stroke: var(--ink); fill: none; stroke-width: 1.3; }
.legend { margin: 0 0 6px; font-size: 13px; color: var(--soft); }
.legend span { margin-right: 14px; white-space: nowrap; }
 .legend i { display: inline-block; width: 11px; height: 11px;
  border-radius: 3px; margin-right: 5px; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap; }
td:not(:last-child) { white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } .right { text-align: right; }
ul { padding-left: 20px; margin: 8px 0; } .method { max-width: 82ch; color: var(--soft); }
main { padding-bottom: 56px; }
@media (max-width: 640px) { header { flex-direction: column; gap: 14px; }
  .charts { grid-template-columns: 1fr; } }
"""
