"""Child processes under attack: their private surroundings, their end, and what outlives them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Marks the processes of a run, so that those that outlive it are found.
TOKEN = "UINO_DEPLOY_CRASH"
# Seconds that a command may take to leave after a signal, and its workers after it is killed.
PATIENCE = 60.0
LIMIT = 600.0


class Run:
    """A command in a process of its own.

    Args:
        words: after `uino-deploy`.
        inputs: the working folder.
        tmp: the folder for temporary files.
        home: the user's folder, with the caches; receives what the command says.
        fatal: kill the process just before this change of the file system; 0 counts the changes.
    """

    def __init__(
        self, words: list[str], inputs: Path, tmp: Path, home: Path, fatal: int | None = None
    ) -> None:
        self.token = secrets.token_hex(8)
        self.counts = home / f"counts-{self.token}"
        self._said = home / f"said-{self.token}"
        program = ["uino_deploy"] if fatal is None else ["tests.crash.counted", str(fatal)]
        program += [] if fatal is None else [str(self.counts)]
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "TRITON_", "UINO"))
        }
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(home),
            "TMPDIR": str(tmp),
            TOKEN: self.token,
        }
        self.began = time.monotonic()
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *program, *words],
                cwd=inputs,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Return the exit status, negative for a signal; None if it still runs by then."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        except BaseException:  # the campaign itself is stopped
            self.survivors(0)
            self._process.wait()
            raise

    def send(self, number: int) -> None:
        """Send a signal: SIGINT and SIGHUP to the whole group, as a terminal does."""
        if self._process.poll() is None:
            send = os.killpg if number in {signal.SIGINT, signal.SIGHUP} else os.kill
            send(self._process.pid, number)

    def said(self) -> str:
        """Return what it wrote to its streams; read once."""
        text = self._said.read_text(errors="replace")
        self._said.unlink()
        return text

    def survivors(self, seconds: float = PATIENCE) -> list[str]:
        """Return the command lines of its processes that still run by then, and end those."""
        deadline = time.monotonic() + seconds
        while (left := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return [*left.values()]

    def _marked(self) -> dict[int, str]:
        mark, found = f"{TOKEN}={self.token}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = line.strip()
            except OSError:  # it ended, or is another user's
                continue
        return found
