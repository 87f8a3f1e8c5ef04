"""Readers under attack: damaged inputs, each read in a child process with bounds, and verdicts.

The child may crash, hang or run out of memory: the parent survives, saves the input and goes on.
Every fault is saved under `build/fuzz/` once, with its smallest input. Linux alone: memory is
bounded by RLIMIT_DATA and measured through /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import hashlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import click

from uino_deploy.cli import COMMANDS, main

BATCH = 2000
"""Inputs that one child reads; the next child starts from fresh memory."""

MOST_LETTERS = 8000
"""Of an error's line. Paths, of 4096 bytes at most, may stand in it."""

MOST_RESERVED = 6 << 30
"""Bytes that a reader may reserve, so that it cannot take the machine down before it is judged."""

CODES = {1, 2, 3, 4}
# How a child ends that is told to stop, not by its reader.
_STOPPED = {-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGTERM}
_CONTEXT = multiprocessing.get_context("fork")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What Python tells of the outside world that a reader must leave alone.
_ACTS = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.system", "os.exec", "os.posix_spawn", "os.startfile",
    "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "webbrowser.open", "pty.spawn",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A reader, and the inputs that it is given.

    Attributes:
        valid: the files of a valid input, by their names in a folder.
        damaged: some of these files, damaged, from a random generator.
        read: reads the folder as the product does, and checks what it got by assertions.
        megabytes: how much resident memory an input may take.
        seconds: how much CPU time an input may take.
        patience: seconds on the clock after which the reader hangs.
    """

    valid: dict[str, bytes]
    damaged: Callable[[Random], dict[str, bytes]]
    read: Callable[[Path], object]
    megabytes: int = 64
    seconds: float = 2.0
    patience: float = 60.0


Parser = Callable[[Path], Case]
"""Makes a case; its argument is an empty folder, for samples that are written by the product."""


@dataclass
class Tally:
    """What became of a parser's inputs."""

    name: str
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    largest: float = 0.0
    seconds: float = 0.0
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.name:<14} {self.inputs:>8} inputs, {self.accepted:>7} accepted, "
            f"at most {1000 * self.slowest:5.0f} ms and {self.largest:3.0f} MB, "
            f"{self.seconds:6.1f} s, {len(self.faults)} faults"
        )


class Broken(AssertionError):
    """A reader did what none may do."""


def attack(name: str, parser: Parser, seed: int, inputs: int, seconds: float, found: Path) -> Tally:
    """Give a reader damaged inputs until their number or the time is reached.

    Args:
        name: the parser's name.
        parser: makes the case.
        seed: the same seed gives the same inputs.
        inputs: how many at most.
        seconds: when to stop.
        found: the folder for inputs that show a fault.
    """
    tally = Tally(name)
    with _prepared(parser) as (case, folder):
        start = time.monotonic()
        while tally.inputs < inputs and time.monotonic() - start < seconds:
            count = min(BATCH, inputs - tally.inputs)
            numbers = _CONTEXT.RawArray("d", 4)  # read, accepted, most CPU seconds, most MB
            left = seconds - (time.monotonic() - start)
            words = (name, case, folder, seed, tally.inputs, count, left, numbers, found)
            ended = _joined(_CONTEXT.Process(target=_batch, args=words, daemon=True))
            if ended in _STOPPED:
                raise KeyboardInterrupt
            if ended:
                damaged = _changed(case, folder)
                _save(found, name, damaged, _death(ended, case), ended)
            # One that ended its process before it was counted must not come again.
            tally.inputs += max(1 if ended else 0, round(numbers[0]))
            tally.accepted += round(numbers[1])
            tally.slowest = max(tally.slowest, numbers[2])
            tally.largest = max(tally.largest, numbers[3])
        tally.seconds = time.monotonic() - start
    tally.faults = tuple(sorted(each.name for each in found.glob(f"{name}-*")))
    return tally


def rerun(parser: Parser, saved: Path) -> str:
    """Read one saved input again, in a child; return its fault, empty if there is none now.

    Raises:
        ValueError: nothing was saved there.
    """
    with _prepared(parser) as (case, folder), tempfile.TemporaryDirectory() as temporary:
        files = {each.name: each.read_bytes() for each in (saved / "input").iterdir()}
        if not files:
            raise ValueError(f"{saved / 'input'} holds no file: there is nothing to read again")
        names = {_flat(name): name for name in case.valid}
        damaged = {names[name]: data for name, data in files.items()}
        found = Path(temporary)
        words = ("again", case, folder, damaged, found)
        ended = _joined(_CONTEXT.Process(target=_one, args=words))
        if ended:
            return _death(ended, case)
        reports = [each.read_text() for each in found.glob("*/report.txt")]
        return reports[0] if reports else ""


def command(*words: str) -> None:
    """Run the command line in this process; an error is raised, what it prints is checked.

    Raises:
        Broken: it leaves with another exit code, or prints what a terminal obeys.
    """
    code, out, err = _ran(*words, "--debug")
    if code not in {0, *CODES}:
        raise Broken(f"exit code {code}")
    for line in (out + err).split("\n"):
        _check_printable(line)


def fault(error: BaseException) -> str:
    """Return what is wrong about the way in which an input was refused; empty if nothing is.

    The command line is made to report the error, as it would.
    """
    if isinstance(error, Broken):
        return f"broken: {error}"
    if isinstance(error, MemoryError):
        return "runs out of memory"
    _refused[:] = [error]
    with patch.dict(COMMANDS, {"refuse": f"{__name__}:refuse"}):
        code, _, err = _ran("refuse")
    line = err.removesuffix("\n")
    if line.startswith("error: unexpected "):
        return f"unhandled {type(error).__name__}"
    if code not in CODES or (isinstance(error, OSError) and code != 2):
        return f"{type(error).__name__} ends with exit code {code}"
    if not line.removeprefix("error: ") or len(line) > MOST_LETTERS:
        return f"an error of {len(line.removeprefix('error: '))} letters"
    try:
        _check_printable(line)
    except Broken as broken:
        return str(broken)
    return ""


_refused: list[BaseException] = []


@click.command()
def refuse() -> None:
    """Raise the error that is judged."""
    raise _refused[0]


def _ran(*words: str) -> tuple[object, str, str]:
    """Run the command line in this process; return its exit code, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as leaving:
        return leaving.code, out.getvalue(), err.getvalue()
    raise AssertionError("the command line returned")


@contextlib.contextmanager
def _prepared(parser: Parser) -> Iterator[tuple[Case, Path]]:
    """Yield a case and a folder that holds its valid files, after reading them once."""
    # One heap for all threads, whose reserved parts would count as taken.
    ctypes.CDLL(None).mallopt(-8, 1)
    with tempfile.TemporaryDirectory(prefix="uino-fuzz-") as temporary:
        home = Path(temporary)
        (home / "made").mkdir()
        case = parser(home / "made")
        folder = home / "input"
        _write(folder, case.valid)
        with _quiet():
            case.read(folder)  # also imports what the children then have
        yield case, folder


def _joined(process: Any) -> int:
    """Run a child to its end; return what ended it, 0 if it left by itself."""
    process.start()
    process.join()
    return int(process.exitcode or 0)


def _batch(
    name: str,
    case: Case,
    folder: Path,
    seed: int,
    start: int,
    count: int,
    seconds: float,
    numbers: Any,
    found: Path,
) -> None:
    """Read some of a seed's inputs; in the child."""
    bounds = _Bounds(case, folder)
    end = time.monotonic() + seconds
    before: set[str] = set()
    for index in range(start, start + count):
        if time.monotonic() > end:
            return
        damaged = case.damaged(Random(f"{seed} {name} {index}"))
        _write(folder, {each: case.valid[each] for each in before - damaged.keys()} | damaged)
        before = set(damaged)
        numbers[0] += 1
        what, trace = bounds.read()
        numbers[1] += not trace
        numbers[2] = max(numbers[2], bounds.spent)
        numbers[3] = max(numbers[3], bounds.taken)
        if what:
            _save(found, name, damaged, what, trace)


def _one(name: str, case: Case, folder: Path, damaged: dict[str, bytes], found: Path) -> None:
    """Read one input; in the child."""
    bounds = _Bounds(case, folder)
    _write(folder, damaged)
    what, trace = bounds.read()
    if what:
        _save(found, name, damaged, what, trace)


class _Bounds:
    """Bounds of this process, and a watch over what it does while a reader reads.

    Attributes:
        spent: CPU seconds that the last input took.
        taken: megabytes of resident memory that it took at most.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, Path(os.path.realpath(folder))
        self.spent = self.taken = 0.0
        self._reading = False
        self._acts: list[str] = []
        sys.addaudithook(self._told)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_RESERVED, MOST_RESERVED))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in native code too
        # What a native library writes about an input lands here.
        self._written = tempfile.TemporaryFile()  # noqa: SIM115 - until the process ends
        faulthandler.disable()
        sys.stderr.flush()
        os.dup2(self._written.fileno(), 2)

    def read(self) -> tuple[str, str]:
        """Return what is wrong, if anything, and how the input was refused, if it was."""
        what = trace = ""
        signal.setitimer(signal.ITIMER_REAL, self.case.patience)
        before, start = _peak(reset=True), time.process_time()
        self._reading = True
        try:
            with _quiet():
                self.case.read(self.folder)
        except BaseException as error:
            self._reading = False
            if isinstance(error, SystemExit) and error.code in _STOPPED:
                raise  # somebody stops the run
            what = fault(error)
            trace = "".join(traceback.format_exception(error)) if what else "refused"
        self._reading = False
        self.spent, self.taken = time.process_time() - start, _peak() - before
        signal.setitimer(signal.ITIMER_REAL, 0)
        return (excess, f"{excess}\n{trace}") if (excess := self._excess()) else (what, trace)

    def _excess(self) -> str:
        """Return what the reader did beyond its bounds; empty if nothing."""
        acts, self._acts = self._acts, []
        written = os.lseek(2, 0, os.SEEK_CUR)
        if written:
            os.lseek(2, 0, os.SEEK_SET)
            os.ftruncate(2, 0)
            return "something is written to stderr beside the one line"
        if acts:
            return f"it acts: {acts[0]}"
        if self.spent > self.case.seconds:
            return f"takes more than {self.case.seconds:g} s of CPU time"
        if self.taken > self.case.megabytes:
            return f"takes more than {self.case.megabytes} MB"
        return ""

    def _told(self, event: str, words: tuple[Any, ...]) -> None:
        if not self._reading:
            return
        writes = event == "open" and isinstance(words[2], int) and words[2] & _WRITES
        if (writes or event in _ACTS) and not self._harmless(words[0]):
            self._acts.append(f"{event} {words[:2]!r}")

    def _harmless(self, place: object) -> bool:
        """Return whether a file that is written or changed is one of the input's own folder."""
        if not isinstance(place, str | bytes | os.PathLike):
            return isinstance(place, int)  # a file that is open already
        name = os.fsdecode(place)
        return name == os.devnull or Path(os.path.realpath(name)).is_relative_to(self.folder)


def _save(found: Path, name: str, damaged: dict[str, bytes], what: str, trace: object) -> None:
    """Keep a fault's smallest input."""
    lines = str(trace).strip().splitlines()
    ours = [line.strip() for line in lines if "uino_deploy" in line and line.strip()[:4] == "File"]
    mark = f"{what}\n{ours[-1] if ours else ''}"
    place = found / f"{name}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"
    size = sum(map(len, damaged.values()))
    files = place / "input"
    if files.exists() and sum(each.stat().st_size for each in files.iterdir()) <= size:
        return
    shutil.rmtree(place, ignore_errors=True)
    files.mkdir(parents=True)
    for each, data in damaged.items():
        (files / _flat(each)).write_bytes(data)
    (place / "report.txt").write_text(
        f"{name}: {what}\nread it again: python -m tests.fuzz --rerun {place}\n\n{trace}\n",
        encoding="utf-8",
        errors="backslashreplace",
    )


def _death(ended: int, case: Case) -> str:
    """Return how a child ended."""
    if ended == -signal.SIGALRM:
        return f"hangs: it took more than {case.patience:g} s"
    if ended < 0:
        return f"crashes the process: {signal.Signals(-ended).name}"
    return f"ends the process with code {ended}"


def _changed(case: Case, folder: Path) -> dict[str, bytes]:
    files = {name: (folder / name).read_bytes() for name in case.valid}
    return {name: data for name, data in files.items() if data != case.valid[name]}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _flat(name: str) -> str:
    return name.replace("/", "+")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _peak(reset: bool = False) -> float:
    """Return this process's most resident memory so far in MB, after forgetting it if asked to."""
    if reset:
        Path("/proc/self/clear_refs").write_bytes(b"5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _check_printable(line: str) -> None:
    for letter in line:
        control = unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"}
        if control or unicodedata.bidirectional(letter)[:2] in {"LR", "RL", "FS", "PD"}:
            raise Broken(f"a line with {letter!r} in it")
