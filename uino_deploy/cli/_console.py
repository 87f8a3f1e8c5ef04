"""Console output: results on stdout, everything else on stderr, one JSON document with `--json`.

Commands hold one `Output` and never print by themselves, so that `--json` and `--quiet` mean the
same in all of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from uino_deploy.inputs import InputNotice

# Seconds between two plain lines of progress where stderr is not a terminal.
PLAIN_PROGRESS_SECONDS = 15.0

# Notices shown of one kind: a folder may hold a thousand masks alike.
NOTICES_OF_A_KIND = 3

_INDENT = "    "
# Letters of an error's line; a path may have 4096.
_LONGEST_LINE = 6000
# Characters that a terminal obeys or that cannot be written; a line break is dealt with by itself.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# A cell of a column of numbers; "-" stands for a number that does not exist.
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?(e[-+]\d+)?|-")


@dataclass(frozen=True)
class Output:
    """The only way in which a command prints.

    Attributes:
        json: results go into one JSON document; `text` and `table` are silent.
        quiet: no log lines and no progress; results and errors remain.
    """

    json: bool = False
    quiet: bool = False

    def log(self, message: str) -> None:
        """Write a progress note to stderr, unless `--quiet`."""
        if not self.quiet:
            note(message)

    def warn(self, message: str) -> None:
        """Write a warning to stderr; `--quiet` does not silence it."""
        note(f"warning: {message}")

    def live(self, message: str) -> None:
        """Replace the last line of a terminal's stderr; "" removes it. Nothing elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            return
        line = shown(message)[: shutil.get_terminal_size().columns - 1]
        with contextlib.suppress(OSError):
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)

    def text(self, message: str = "") -> None:
        """Write a result for people to stdout, unless `--json`."""
        if not self.json:
            click.echo(shown(message))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write aligned columns to stdout, unless `--json`; columns of numbers are flush right.

        Columns that do not fit the terminal are written below their row, each cell whole and
        after its column's name.
        """
        if self.json:
            return
        cells = [[shown(str(cell)).replace("\n", "\\n") for cell in row] for row in rows]
        for line in table_lines(columns, cells, shutil.get_terminal_size().columns):
            click.echo(line)

    def document(self, value: Mapping[str, Any]) -> None:
        """Write the one JSON document to stdout; silent without `--json`."""
        if self.json:
            click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))

    def outcome(self, word: str, colour: str, reason: str) -> None:
        """Write a coloured word and its reason to stdout, unless `--json`."""
        if not self.json:
            click.echo(f"{paint(word, colour)}: {shown(reason)}")

    def verdict(self, failures: Sequence[str], code: int = 1) -> None:
        """Write the last line, `PASSED` or `FAILED: reason`; leave with `code` on a failure.

        With `--json` the line goes to stderr: the document carries the verdict.
        """
        reason = shown("; ".join(failures))
        line = f"{paint('FAILED', 'red')}: {reason}" if failures else paint("PASSED", "green")
        click.echo(line, err=self.json)
        if failures:
            fail(code)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Show the progress of a long task: a bar on a terminal, else an occasional line.

        Args:
            what: the task, such as "segmenting".
            total: number of steps.

        Yields:
            A function to call after each step.
        """
        if self.quiet:
            yield lambda: None
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(what, total=total)
                yield lambda: bar.advance(task)
        else:
            yield _PlainProgress(what, total).step


@contextmanager
def notices() -> Iterator[None]:
    """Write notices about inputs to stderr as warnings: the first few of each kind."""
    told: Counter[str] = Counter()

    def show(message: Warning | str, *rest: Any) -> None:
        if not isinstance(message, InputNotice):
            usual(message, *rest)
            return
        told[message.kind] += 1
        count = told[message.kind]
        if count <= NOTICES_OF_A_KIND:
            more = " (more of this kind are not shown)" if count == NOTICES_OF_A_KIND else ""
            note(f"warning: {' '.join(str(message).split())}{more}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputNotice)
        usual: Callable[..., None] = warnings.showwarning
        warnings.showwarning = show  # type: ignore[assignment] # its optional arguments are passed on
        yield


def shown(text: str) -> str:
    """Return text for a terminal: what a name may hold to move its cursor is written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(message: str) -> str:
    """Return a message as one line for a terminal; what it quotes of an input may be megabytes."""
    line = " ".join(message.split())
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE - 500]} ... {line[-400:]}"
    return shown(line)


def note(message: str) -> None:
    """Write a line to stderr; that nobody can read it must not end the work."""
    with contextlib.suppress(OSError):
        click.echo(shown(message), err=True)


def open_streams() -> None:
    """Give the command the streams that it was started without (`2>&-`, a service, pythonw).

    The next file that is opened would take a closed stream's number, and what a library prints
    would land in it. What an output's encoding lacks is escaped: no name can end the work.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _plain(value: Any) -> Any:
    """Return a document's value with null for numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def paint(text: str, colour: str) -> str:
    """Colour a word; `click.echo` strips the colour if the output is not a terminal.

    `NO_COLOR` (https://no-color.org) turns colour off everywhere.
    """
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int
) -> Iterator[str]:
    """Yield the lines of a table at most `width` characters wide; cells break only at spaces."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    fitting = 1  # the first column always stays in the table
    while fitting < len(columns) and sum(widths[: fitting + 1]) + 2 * fitting <= width:
        fitting += 1
    right = [bool(rows) and all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(fitting)]
    dashes = ["-" * each for each in widths]
    for row in (list(columns), dashes, *cells):
        padded = (
            cell.rjust(size) if to_right else cell.ljust(size)
            for cell, size, to_right in zip(row, widths, right, strict=False)
        )
        yield "  ".join(padded).rstrip()
        if row is not dashes and row != list(columns):
            below = [f"{columns[i]}: {row[i]}" for i in range(fitting, len(columns)) if row[i]]
            yield from _packed(below, width)


def _packed(parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield indented lines that hold as many of the parts as fit, each whole if one line can."""
    line = ""
    for part in parts:
        longer = f"{line}, {part}" if line else part
        if line and len(_INDENT + longer) > width:
            yield from _folded(line, width)
            longer = part
        line = longer
    if line:
        yield from _folded(line, width)


def _folded(line: str, width: int) -> list[str]:
    return textwrap.wrap(
        line,
        max(width, 20),
        initial_indent=_INDENT,
        subsequent_indent=2 * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


class _PlainProgress:
    """Progress as an occasional line on stderr, and one at the end."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._said = time.monotonic()

    def step(self) -> None:
        """Count one step; print a line after the last one, or if enough time has passed."""
        self._done += 1
        now = time.monotonic()
        if self._done == self._total or now - self._said >= PLAIN_PROGRESS_SECONDS:
            self._said = now
            note(f"{self._what}: {self._done}/{self._total}")


def size(count: int) -> str:
    """Return bytes for people: 12.6 MB (powers of ten)."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"


def fail(code: int) -> NoReturn:
    """Exit with a code; the command has already printed the reason."""
    raise click.exceptions.Exit(code)
