"""A worker process as its parent sees it: requests go in, answers or a failure come out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy.benchmarks.runners.runner import Task

_LAST_WORDS = 3
_PATIENCE = 10.0

# Every library's own way to be told the number of threads; read when it is loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerFailed(Exception):
    """A runner could not do what it was asked; `refused` where it cannot run on this machine."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused


class WorkerProcess:
    """Starts a worker with a task and waits until its runner is loaded.

    Args:
        task: what it runs.

    Raises:
        WorkerFailed: the runner could not be loaded.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        # Open for as long as the process runs; `close` closes it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uino_deploy.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(task),
            text=True,
        )
        try:
            self.about: dict[str, str] = self._exchange(msgspec.json.encode(task).decode())["about"]
        except BaseException:
            self.close()
            raise

    @property
    def number(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, what: str, **arguments: Any) -> Mapping[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerFailed: the runner raised, or the process died.
        """
        return self._exchange(json.dumps({"do": what, **arguments}))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            # Closing flushes, into a pipe that a dead process no longer reads.
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _exchange(self, line: str) -> dict[str, Any]:
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            raise WorkerFailed("the process has no pipes")
        try:
            requests.write(line + "\n")
            requests.flush()
            said = answers.readline()
        except OSError:
            said = ""
        if not said:
            raise WorkerFailed(self._last_words())
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise WorkerFailed(answer["error"], answer.get("refused", False))
        return answer

    def _last_words(self) -> str:
        """Say how the process ended and what it printed last."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return f"the process ended with {how}: " + " / ".join(lines[-_LAST_WORDS:])


def _environment(task: Task) -> dict[str, str]:
    """Return the parent's environment with the task's threads, and caches in its own folder."""
    threads = dict.fromkeys(_THREADS, str(task.threads))
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(Path(task.scratch) / "inductor")}
    return {**os.environ, **threads, **caches}
