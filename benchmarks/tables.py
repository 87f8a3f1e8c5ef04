"""Records as rows of text: for the terminal, the page and the README."""

from __future__ import annotations

from uino_deploy.benchmarks.record import MAIN, Entry, Record

Table = tuple[list[str], list[list[str]]]

NOTHING = "-"
MOST_LAYERS = 12
BASELINE = "torch"  # speeds are multiples of this peer's: PyTorch eager in float32


def situation(record: Record) -> list[str]:
    """Describe in a few lines the model, the machine, the method and any disturbance."""
    machine, method, model = record.machine, record.method, record.model
    lines = [
        f"{model.preset} {model.variant} on {machine.processor}, {machine.cores} cores, "
        f"{machine.system}",
        f"{method.rounds} rounds of {_turn(record)}, {len(method.images)} photographs, "
        f"{method.episodes} held-out episodes",
    ]
    if machine.gpus:
        lines.append(", ".join(machine.gpus))
    if model.untrained:
        lines.append(
            f"random weights in {', '.join(model.untrained)}: masks mean nothing, errors do"
        )
    if record.others_cpu is not None and record.others_cpu > DISTURBED:
        lines.append(
            f"DISTURBED: other processes used {100 * record.others_cpu:.0f} % of the cores"
        )
    return lines


DISTURBED = 0.05
"""Fraction of the cores used by others above which the reader is warned."""


def _turn(record: Record) -> str:
    method = record.method
    if method.iterations is not None:
        return f"{method.iterations} queries"
    return f"{method.seconds:g} s"


def entry_rows(record: Record) -> Table:
    """Return a row for each entry: speed and accuracy side by side, or why it has no speed."""
    several = _several(record)
    baseline = any(entry.runner == BASELINE for entry in record.entries)
    header = ["", *several, "ms", "spread", "p95", *(["x PyTorch"] if baseline else [])]
    header += ["logits L2", "mask IoU", "mIoU drop", "MB"]
    header += ["peak MB", "cold s", "uncached s", ""]
    rows = []
    for entry in record.entries:
        rows.append(
            [
                entry.name,
                *([str(entry.image_size)] if "px" in several else []),
                *([str(entry.threads)] if "threads" in several else []),
                *_speed(entry),
                *([_times_faster(record, entry)] if baseline else []),
                *_accuracy(entry),
                *_footprint(entry),
                "" if entry.status == "passed" else f"{entry.status.upper()}: {entry.reason}",
            ]
        )
    return header, rows


def _several(record: Record) -> list[str]:
    """Return the columns without which two entries would look alike."""
    sizes = {entry.image_size for entry in record.entries}
    threads = {entry.threads for entry in record.entries}
    return [name for name, kinds in (("px", sizes), ("threads", threads)) if len(kinds) > 1]


def _speed(entry: Entry) -> list[str]:
    timing = entry.main
    if timing is None:
        return [NOTHING] * 3
    low, high = timing.spread
    return [milliseconds(timing.median), f"{ms(low)} to {ms(high)}", milliseconds(timing.p95)]


def _times_faster(record: Record, entry: Entry) -> str:
    """Return the speed-up over PyTorch eager in float32 at the same size and threads."""
    for other in record.entries:
        same = other.runner == BASELINE and other.key[1:] == entry.key[1:]
        if same and entry.main is not None and other.main is not None:
            return f"{other.main.median / entry.main.median:.2f}"
    return NOTHING


def _accuracy(entry: Entry) -> list[str]:
    known = entry.accuracy
    if known is None:
        return [NOTHING] * 3
    drop = None
    if known.miou is not None and known.reference_miou is not None:
        drop = known.reference_miou - known.miou
    return [
        f"{known.logits_relative_l2:.1e}",
        NOTHING if known.mask_iou is None else f"{known.mask_iou:.4f}",
        NOTHING if drop is None else f"{drop:.2f}",
    ]


def _footprint(entry: Entry) -> list[str]:
    memory = entry.memory
    return [
        megabytes(None if memory is None else memory.steady),
        megabytes(None if memory is None else memory.peak),
        *(
            NOTHING if timing is None else f"{timing.median:.2f}"
            for timing in (entry.cold_start, entry.cold_start_uncached)
        ),
    ]


def scaling_rows(record: Record) -> Table:
    """Return the cases other than the main one: milliseconds of each entry that passed.

    "each further" is the cost of each class, shot or query beyond the first.
    """
    others = [case for case in record.method.cases if case != MAIN]
    header = ["case", "", "ms", "of the main", "each further", "queries/s", "logits L2"]
    rows = []
    for case in others:
        for entry in record.entries:
            main = entry.main
            for result in entry.cases:
                if result.case == case and main is not None and result.timing is not None:
                    median = result.timing.median
                    further = max(case.classes, case.shots, case.batch) - 1
                    rows.append(
                        [
                            str(case),
                            entry.name,
                            milliseconds(median),
                            f"{median / main.median:.2f}",
                            milliseconds((median - main.median) / further),
                            f"{result.queries_per_second:.2f}",
                            NOTHING
                            if result.logits_relative_l2 is None
                            else f"{result.logits_relative_l2:.1e}",
                        ]
                    )
    return (header, rows) if rows else ([], [])


def layer_rows(record: Record) -> Table:
    """Return the operators that take the most time of each profiled entry."""
    header = ["profile", "piece", "operator", "calls", "ms", "share", ""]
    rows = []
    for profile in record.profiles:
        for layer in profile.layers[:MOST_LAYERS]:
            rows.append(
                [
                    profile.name,
                    layer.piece,
                    layer.operator,
                    f"{layer.calls:g}",
                    milliseconds(layer.seconds),
                    f"{100 * layer.share:.1f}%",
                    "fused attention" if layer.attention else "",
                ]
            )
    return (header, rows) if rows else ([], [])


def attention_lines(record: Record) -> list[str]:
    """Return a line for each profiled entry: whether its runtime fused the attention."""
    return [
        f"{profile.name}: attention "
        + ("fused" if any(layer.attention for layer in profile.layers) else "not fused")
        for profile in record.profiles
    ]


def milliseconds(seconds: float | None) -> str:
    """Return milliseconds to three digits."""
    return NOTHING if seconds is None else ms(seconds)


def ms(seconds: float) -> str:
    """Return milliseconds to three digits or the full number."""
    value = 1000 * seconds
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def megabytes(count: int | None) -> str:
    """Return bytes in MB."""
    return NOTHING if count is None else f"{count / 1e6:.0f}"
