"""The parent's side of a worker process: requests go in, answers or a failure come out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.child import Child, ChildFailed

# The libraries' variables for the number of threads, read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerFailed(Exception):
    """A runner failed at a request; `refused` if it cannot run on this machine."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused


class WorkerProcess:
    """Starts a worker with a task and waits until its runner is loaded.

    Args:
        task: the worker's task.

    Raises:
        WorkerFailed: the runner could not be loaded.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._child = Child("uino_deploy.benchmarks.worker:answer", _environment(task))
        try:
            self.about: dict[str, str] = self._exchange(task)["about"]
        except BaseException:
            self._child.kill()
            raise

    @property
    def number(self) -> int:
        """The process's number."""
        return self._child.pid

    def ask(self, what: str, **arguments: Any) -> Mapping[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerFailed: the runner raised, or the process died.
        """
        return self._exchange({"do": what, **arguments})

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: Any) -> None:
        self._child.__exit__(*error)

    def _exchange(self, request: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._child.ask(request)
        except ChildFailed as error:
            raise WorkerFailed(f"its process {error}") from error
        if "error" in answer:
            raise WorkerFailed(answer["error"], answer.get("refused", False))
        return answer


def _environment(task: Task) -> dict[str, str]:
    """Return the parent's environment with the task's threads, and caches in its own folder."""
    threads = dict.fromkeys(_THREADS, str(task.threads))
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(Path(task.scratch) / "inductor")}
    return {**os.environ, **threads, **caches}
