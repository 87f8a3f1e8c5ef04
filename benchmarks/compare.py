"""The comparison of two records of one method: what became slower, larger or wrong.

A figure is a regression if it is worse by more than the margin and its whole spread lies beyond
the other record's: noise within either record is no regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from uino_deploy.benchmarks.record import Entry, Record, Timing
from uino_deploy.errors import CheckFailed, InputError


@dataclass(frozen=True)
class Change:
    """One figure of one entry in both records, in its own unit; smaller is better.

    Attributes:
        entry: the entry's name, with image size and threads.
        what: the figure, such as "classes 1, shots 1, batch 1" or "steady memory".
        before: in the first record.
        after: in the second.
        unit: "ms" or "MB".
        regression: it is worse by more than the margin and outside both spreads.
        improvement: it is better by more than the margin and outside both spreads.
    """

    entry: str
    what: str
    before: float
    after: float
    unit: str
    regression: bool
    improvement: bool

    @property
    def ratio(self) -> float:
        """After divided by before."""
        return self.after / self.before if self.before else float("inf")


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_records`.

    Attributes:
        changes: every figure that both records have.
        broken: entries that passed in the first record and did not in the second.
        missing: entries that only one of the records has.
    """

    changes: list[Change]
    broken: list[str]
    missing: list[str]

    @property
    def failures(self) -> list[str]:
        """A line for every regression and every broken entry."""
        return self.broken + [
            f"{c.entry}, {c.what}: {c.before:.4g} to {c.after:.4g} {c.unit} ({c.ratio:.2f}x)"
            for c in self.changes
            if c.regression
        ]


def compare_records(before: Record, after: Record, margin: float) -> Comparison:
    """Compare the entries that two records share.

    Args:
        before: the earlier record.
        after: the later record, from the same machine and method.
        margin: how much worse a median may be, as a fraction of the first: 0.1 for 10 %.

    Raises:
        InputError: the methods, machines or models differ, no entry is in both, or an entry stands
            twice in a record.
        CheckFailed: an entry or a case that passed in the first record is not in the second, or
            there is nothing to compare.
    """
    _check_comparable(before, after)
    old, new = _by_key(before, "first"), _by_key(after, "second")
    both = [key for key in old if key in new]
    if not both:
        raise InputError("the records have no entry in common")
    _check_nothing_gone(old, new)
    changes, broken = [], []
    for key in both:
        was, now = old[key], new[key]
        if was.status == "passed" and now.status != "passed":
            broken.append(f"{_name(was)} {now.status}: {now.reason}")
        elif was.status == "passed":
            changes += list(_changes(was, now, margin))
    if not (changes or broken):
        raise CheckFailed(
            "no figure is in both records: what both have did not run", "measure the first again"
        )
    missing = [_name((old | new)[key]) for key in old.keys() ^ new.keys()]
    return Comparison(changes, broken, sorted(missing))


def _check_comparable(before: Record, after: Record) -> None:
    """Refuse records of different methods, machines or models, and name the difference."""
    pairs = (
        ("method", before.method, after.method),
        ("machine", before.machine, after.machine),
        ("model", before.model, after.model),
    )
    for what, one, other in pairs:
        a, b = msgspec.to_builtins(one), msgspec.to_builtins(other)
        # A GPU's current clock is incidental; its limits are in the same text.
        differing = [name for name in a if a[name] != b[name] and name != "gpu_clocks"]
        if differing:
            name = differing[0]
            raise InputError(
                f"the records' {what}s differ in {', '.join(differing)}: "
                f"{_short(a[name])} and {_short(b[name])}",
                "measure both with the same options on the same machine",
            )


def _by_key(record: Record, which: str) -> dict[Any, Entry]:
    found: dict[Any, Entry] = {}
    for entry in record.entries:
        if found.setdefault(entry.key, entry) is not entry:
            raise InputError(f"the {which} record has {_name(entry)} twice", "measure it again")
    return found


def _check_nothing_gone(old: dict[Any, Entry], new: dict[Any, Entry]) -> None:
    """Refuse to pass what was not measured again."""
    gone = []
    for key, was in old.items():
        if was.status != "passed":
            continue
        if key not in new:
            gone.append(_name(was))
        elif new[key].status == "passed":
            measured = {result.case for result in new[key].cases}
            lost = [result.case for result in was.cases if result.case not in measured]
            gone += [f"{_name(was)}, {case}" for case in lost]
    if gone:
        raise CheckFailed(
            f"passed in the first record and not in the second: {'; '.join(gone)}",
            "measure it again",
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def _changes(was: Entry, now: Entry, margin: float) -> Iterator[Change]:
    later = {result.case: result.timing for result in now.cases}
    for result in was.cases:
        yield from _timing(was, str(result.case), result.timing, later.get(result.case), margin)
    for name, timing in was.stages.items():
        yield from _timing(was, name, timing, now.stages.get(name), margin)
    for what in ("cold_start", "cold_start_uncached"):
        name = what.replace("_", " ")
        yield from _timing(was, name, getattr(was, what), getattr(now, what), margin)
    if was.memory is not None and now.memory is not None:
        for what in ("steady", "peak", "device"):
            yield from _bytes(
                was, f"{what} memory", getattr(was.memory, what), getattr(now.memory, what), margin
            )


def _timing(
    entry: Entry, what: str, before: Timing | None, after: Timing | None, margin: float
) -> Iterator[Change]:
    if before is None or after is None:
        return
    (low, high), (new_low, new_high) = before.spread, after.spread
    old, new = before.median, after.median
    yield Change(
        entry=_name(entry),
        what=what,
        before=1000 * old,
        after=1000 * new,
        unit="ms",
        regression=new > old * (1 + margin) and new_low > high,
        improvement=new < old * (1 - margin) and new_high < low,
    )


def _bytes(
    entry: Entry, what: str, before: int | None, after: int | None, margin: float
) -> Iterator[Change]:
    if before is None or after is None:
        return
    yield Change(
        entry=_name(entry),
        what=what,
        before=before / 1e6,
        after=after / 1e6,
        unit="MB",
        regression=after > before * (1 + margin),
        improvement=after < before * (1 - margin),
    )


def _name(entry: Entry) -> str:
    threads = "thread" if entry.threads == 1 else "threads"
    return f"{entry.name}, {entry.image_size} px, {entry.threads} {threads}"
