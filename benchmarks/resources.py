"""Use of the machine: a process's resident memory, and processor time used by others.

All values come from Linux's /proc; elsewhere they are None.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def resident_bytes(proc: Path = PROC, process: str = "self") -> tuple[int | None, int | None]:
    """Return the resident set of a process now and its largest so far (file mappings included)."""
    try:
        lines = (proc / process / "status").read_text().splitlines()
    except OSError:
        return None, None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return _kibibytes(fields.get("VmRSS")), _kibibytes(fields.get("VmHWM"))


def _kibibytes(field: str | None) -> int | None:
    return None if field is None else int(field.split()[0]) * 1024


class OthersCpu:
    """A meter of the fraction of the cores that other processes use during a span of time.

    The time of the given processes and their threads is ours; all other busy time is others'.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._begun: tuple[float, float, float] | None = None
        self._total = self._others = 0.0

    def start(self, processes: list[int]) -> None:
        """Begin a span in which `processes` are ours."""
        self._begun = self._read(processes)

    def stop(self, processes: list[int]) -> None:
        """End the span."""
        now = self._read(processes)
        if self._begun is None or now is None:
            return
        total, busy, ours = (b - a for a, b in zip(self._begun, now, strict=True))
        self._total += total
        self._others += max(0.0, busy - ours)

    @property
    def share(self) -> float | None:
        """Fraction of all cores' time that others used, 0 to 1; None if it could not be read."""
        return self._others / self._total if self._total else None

    def _read(self, processes: list[int]) -> tuple[float, float, float] | None:
        """Return the ticks of all cores, of their work, and of our processes."""
        try:
            ticks = [int(x) for x in (self._proc / "stat").read_text().split("\n")[0].split()[1:9]]
            ours = sum(_process_ticks(self._proc, number) for number in [*processes, os.getpid()])
        except (OSError, ValueError, IndexError):
            return None
        idle = ticks[3] + ticks[4]
        return sum(ticks), sum(ticks) - idle, ours


def _process_ticks(proc: Path, number: int) -> int:
    """Return user and system ticks; the command's name may contain spaces and brackets."""
    fields = (proc / str(number) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
