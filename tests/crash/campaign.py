"""The attacks: a command is killed, signalled, starved of disk or doubled; then one looks."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.commands import Command, Content
from tests.crash.processes import LIMIT, PATIENCE, Run

# Temporary files of others: the file of a moment by which Python's tempfile tries a folder, and
# torch's cache for a user.
_OTHERS = re.compile(r"tmp/([a-z0-9_]{8}$|torchinductor_)")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Fault(Exception):
    """What was found wrong."""


class Skipped(Exception):
    """This machine cannot play the attack."""


@dataclass
class Known:
    """What an undisturbed run gives.

    Attributes:
        before: the content before the run.
        after: the content after it.
        names: all files and folders of the place after it.
        seconds: its duration.
        changes: how often it changes the file system.
        used: bytes and entries of the place before and after it.
    """

    before: Content
    after: Content
    names: list[str]
    seconds: float
    changes: int
    used: tuple[tuple[int, int], tuple[int, int]]


@dataclass
class Campaign:
    """Attacks on one command.

    Args:
        command: the command.
        inputs: from `make_inputs`.
        folder: empty; receives the places of the runs.
    """

    command: Command
    inputs: Path
    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    _other: Content = None
    _known: dict[bool, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)

    # Undisturbed runs ---------------------------------------------------------------------------

    def known(self, replaces: bool = False) -> Known:
        """Run the command undisturbed, once, on nothing or on an output that it replaces."""
        if replaces not in self._known:
            place = self.folder / "known"
            shutil.rmtree(place, ignore_errors=True)
            self.place(place, replaces)
            before, used = self.read(place), _usage(place)
            run = self.start(place, "--force" if replaces else "", fatal=0)
            status, said = run.wait(), run.said()
            if status != 0:
                raise Fault(f"the undisturbed run {_ended(status)}: {_last(said)}")
            seconds = self._seconds(run)
            self._known[replaces] = Known(
                before, self.read(place), _names(place), seconds,
                int(run.counts.read_text()), (used, _usage(place)),
            )  # fmt: skip
            if not replaces:
                shutil.copytree(place, self.folder / "finished")
            shutil.rmtree(place)
        return self._known[replaces]

    @staticmethod
    def _seconds(run: Run) -> float:
        return time.monotonic() - run.began

    def old(self) -> Path:
        """Return a place with an output that `--force` replaces: the other words' result."""
        kept = self.folder / "old"
        if not kept.exists():
            place = self.place(self.folder / "making")
            run = self.start(place, self.command.other)
            status, said = run.wait(), run.said()
            if status != 0:
                raise Fault(f"the run with {self.command.other} {_ended(status)}: {_last(said)}")
            self._other = self.read(place)
            place.rename(kept)
        return kept

    def place(self, root: Path, replaces: bool = False) -> Path:
        """Make a place for a run: the output's folder, and the temporary one."""
        if replaces:
            shutil.copytree(self.old(), root, dirs_exist_ok=True)
            return root
        (root / "tmp").mkdir(parents=True)
        (root / "out").mkdir()
        if self.command.begins:
            shutil.copytree(self.inputs / self.command.begins, self.output(root))
        return root

    def output(self, place: Path) -> Path:
        return place / "out" / self.command.output

    def read(self, place: Path) -> Content:
        """Return the output's content.

        Raises:
            Fault: a reader refuses it.
        """
        try:
            return self.command.read(self.output(place))
        except Exception as error:
            raise Fault(f"the output is damaged: {type(error).__name__}: {error}") from error

    def start(
        self, place: Path, more: str = "", fatal: int | None = None, tmp: Path | None = None
    ) -> Run:
        """Start the command with more words; see `Run` for the rest."""
        words = f"{self.command.words} {more}".split()
        output = str(self.output(place))
        words = [output if word == "OUT" else word for word in words]
        return Run(words, self.inputs, tmp or place / "tmp", self.home, fatal)

    # Attacks ------------------------------------------------------------------------------------

    def kill(self, rng: random.Random, at: int | None = None) -> None:
        """Kill -9 once to three times, by the clock or at a change of the file system; finish."""
        replaces = at is None and rng.random() < 0.4
        known = self.known(replaces)
        first = "--force" if replaces else ""
        again = "--force" if replaces else self.command.again
        with self.fresh(replaces) as place:
            for number in range(1 if at is not None else rng.randint(1, 3)):
                words = again if number else first
                if at is not None or rng.random() < 0.5:
                    moment = at if at is not None else rng.randint(1, known.changes)
                    run = self.start(place, words, moment)
                    told = f"killed at change {moment}"
                    kind = "kill at a change"
                else:
                    moment = rng.uniform(0, 1.05 * known.seconds)
                    run = self.start(place, words)
                    told = f"killed after {moment:.3f} s"
                    kind = "kill by the clock"
                    if run.wait(moment) is None:
                        run.send(signal.SIGKILL)
                status, said = run.wait(), run.said()
                told += f" (kill {number + 1}, {words or 'on nothing'})"
                self.done[kind if status == -signal.SIGKILL else "ended before the kill"] += 1
                with _told(told):
                    if status not in {0, -signal.SIGKILL}:
                        raise Fault(f"it ends with {status}: {_last(said)}")
                    self.nobody(run)
                    self.whole(place, known, aside=replaces)
            with _told(told):
                self.finish(place, known, again)

    def interrupt(self, rng: random.Random, number: int | None = None) -> None:
        """Send a signal that a user or a system sends: all is as before, and nothing is left."""
        replaces = number is None and rng.random() < 0.4
        known = self.known(replaces)
        number = number or rng.choice(SIGNALS)
        moment = rng.uniform(0.1, known.seconds)
        with self.fresh(replaces) as place:
            run = self.start(place, "--force" if replaces else "")
            if run.wait(moment) is None:
                run.send(number)
            status, said = run.wait(PATIENCE), run.said()
            self.done[f"{signal.Signals(number).name}"] += 1
            with _told(f"{signal.Signals(number).name} after {moment:.3f} s"):
                if status is None:
                    run.send(signal.SIGKILL)
                    raise Fault("it is deaf to the signal")
                self.nobody(run)
                if status not in {0, 128 + number, -number}:
                    raise Fault(f"it ends with {status}: {_last(said)}")
                # Before Python has started the command, the signal's own action ends it.
                if status == 128 + number:
                    self.one_line(said)
                self.whole(place, known)
                left = [n for n in _names(place) if ".tmp-" in n or n.startswith("tmp/")]
                if left:
                    raise Fault(f"it leaves {' '.join(left[:4])}")
                self.finish(place, known, "--force" if replaces else self.command.again)

    def disk_full(self, rng: random.Random) -> None:
        """Give it less room than it needs."""
        known = self.known()
        (before, _), (after, _) = known.used
        room = before + int(rng.uniform(0.05, 0.9) * (after - before))
        self._starved(f"size={room // 4096 * 4096 + 8192}", known, f"{room} bytes of disk")
        self.done["disk full"] += 1

    def no_inodes(self, rng: random.Random) -> None:
        """Give it fewer inodes than it needs."""
        known = self.known()
        (_, before), (_, after) = known.used
        entries = rng.randint(before, after)
        self._starved(f"nr_inodes={entries}", known, f"{entries} inodes")
        self.done["out of inodes"] += 1

    def _starved(self, options: str, known: Known, told: str) -> None:
        with mounted(self.folder / "case", options) as root, _told(told):
            place = self.place(root)
            run = self.start(place)
            status, said = run.wait(), run.said()
            self.nobody(run)
            if status == 0:
                self.done["fitted all the same"] += 1
            elif status != 3:
                raise Fault(f"it ends with {status}: {_last(said)}")
            else:
                self.one_line(said)
                if "No space left" not in said:
                    raise Fault(f"it does not say what is missing: {_last(said)}")
            self.whole(place, known)
            if status and self.command.again != "--resume":
                self.untouched(place)
            remount(root, "size=1g,nr_inodes=100k")
            self.finish(place, known, self.command.again)

    def read_only(self, _rng: random.Random) -> None:
        """Give it an output on a read-only file system: refused, before the work."""
        known = self.known()
        with mounted(self.folder / "case", "size=1g") as root, _told("a read-only folder"):
            place = self.place(root)
            names = _names(place)
            remount(root, "ro")
            run = self.start(place, tmp=self.home)
            status, said = run.wait(), run.said()
            self.done["read-only"] += 1
            if status != 2:
                raise Fault(f"it ends with {status}: {_last(said)}")
            self.one_line(said)
            if names != _names(place):
                raise Fault("files changed")
            remount(root, "rw")
            self.finish(place, known, self.command.again)

    def two_writers(self, rng: random.Random) -> None:
        """Run it twice at once on one output."""
        replaces = rng.random() < 0.4
        known = self.known(replaces)
        apart = rng.choice([0.0, rng.uniform(0, known.seconds)])
        more = "--force" if replaces else ""
        with self.fresh(replaces) as place, _told(f"two writers, {apart:.2f} s apart, {more}"):
            one = self.start(place, more)
            one.wait(apart)
            two = self.start(place, more)
            ends = [(run.wait(), run.said()) for run in (one, two)]
            self.done["two writers"] += 1
            for run in (one, two):
                self.nobody(run)
            for status, said in ends:
                if status not in {0, 2}:
                    raise Fault(f"one ends with {status}: {_last(said)}")
                if status:
                    self.one_line(said)
            if all(status for status, _ in ends):
                raise Fault("both are refused: " + " / ".join(_last(said) for _, said in ends))
            if self.read(place) != known.after:
                raise Fault("the output is neither's")
            if _names(place) != known.names:
                raise Fault(f"the names are {_difference(_names(place), known.names)}")

    # What must hold -----------------------------------------------------------------------------

    @contextmanager
    def fresh(self, replaces: bool) -> Iterator[Path]:
        root = self.folder / "case"
        try:
            yield self.place(root, replaces)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def whole(self, place: Path, known: Known, aside: bool = False) -> None:
        """Check that the output is what it was before, or the new one; never a part."""
        content = self.read(place)
        if content is None and known.before is not None and not self.command.begins:
            old = list((place / "out").glob(".*.tmp-*/.old"))
            if not (aside and old) and self.command.again != "--resume":
                raise Fault("the output that was to be replaced has gone")
        elif content not in (None, known.before, known.after, self.bare()):
            raise Fault("the output is neither the old one nor the new one")

    def bare(self) -> Content:
        """Return the content of the input that the command changes, if it does."""
        begins = self.command.begins
        return self.command.read(self.inputs / begins) if begins else None

    def untouched(self, place: Path) -> None:
        """Check that a failed command left nothing."""
        fresh = self.place(self.folder / "fresh")
        names = _names(fresh)
        shutil.rmtree(fresh)
        if _names(place) != names:
            raise Fault(f"it leaves {_difference(_names(place), names)}")

    def finish(self, place: Path, known: Known, more: str) -> None:
        """Run it to the end: the result is that of an undisturbed run, and nothing else is left."""
        run = self.start(place, more)
        status, said = run.wait(), run.said()
        if status != 0:
            raise Fault(f"the rerun {_ended(status)}: {_last(said)}")
        if self.read(place) != known.after:
            raise Fault("the rerun's result is another one")
        if _names(place) != known.names:
            raise Fault(f"after the rerun there is {_difference(_names(place), known.names)}")

    def nobody(self, run: Run) -> None:
        """Check that no process outlives the command.

        On a machine under load, where the command takes long, its workers also learn late of its
        end.
        """
        undisturbed = (known.seconds for known in self._known.values())
        if left := run.survivors(max((10.0, *undisturbed))):
            raise Fault(f"a process outlives it: {left[0][:200]}")

    def one_line(self, said: str) -> None:
        """Check that a failure is told in one line, and not as a bug."""
        last = [line for line in said.splitlines() if line.startswith(("error:", "interrupted"))]
        wrong = any(word in said for word in ("Traceback", "this is a bug", "Exception ignored"))
        if wrong or len(last) > 1:
            raise Fault(f"it does not fail in one line: {_last(said)}")


ATTACKS: dict[str, Callable[[Campaign, random.Random], None]] = {
    "kill": Campaign.kill,
    "signal": Campaign.interrupt,
    "disk full": Campaign.disk_full,
    "out of inodes": Campaign.no_inodes,
    "read-only": Campaign.read_only,
    "two writers": Campaign.two_writers,
}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory.

    Raises:
        Skipped: this user or system cannot.
    """
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "uino-deploy-crash", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Skipped("there is no mount here") from error
    if done.returncode:
        raise Skipped(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Put what was done before a fault's message."""
    try:
        yield
    except Fault as fault:
        raise Fault(f"{what}: {fault}") from None


def _names(place: Path) -> list[str]:
    names = (each.relative_to(place).as_posix() for each in place.rglob("*"))
    return sorted(name for name in names if not _OTHERS.match(name))


def _usage(place: Path) -> tuple[int, int]:
    """Return the bytes, in blocks, and the inodes that a place uses."""
    found = [place, *place.rglob("*")]
    return sum(-(-each.stat().st_size // 4096) * 4096 for each in found), len(found)


def _difference(found: list[str], expected: list[str]) -> str:
    more, fewer = sorted({*found} - {*expected}), sorted({*expected} - {*found})
    said = [f"{' '.join(more[:4])} too much"] if more else []
    return "; ".join(said + ([f"{' '.join(fewer[:4])} missing"] if fewer else []))


def _ended(status: int | None) -> str:
    return f"takes more than {LIMIT:g} s" if status is None else f"ends with {status}"


def _last(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return " / ".join(lines[-2:])[-400:] or "nothing said"
