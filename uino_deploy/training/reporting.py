"""The progress reports of a training run: numbers per step, and lines for people."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from uino_deploy.progress import Step, silent

_SECONDS_BETWEEN_LINES = 30.0
_LOGGER = logging.getLogger("uino_deploy.training")


@dataclass(frozen=True)
class StepProgress:
    """The progress of a training run after a step.

    Attributes:
        stage: the stage, counted from 0.
        stages: number of stages.
        step: steps of this stage done so far.
        steps: steps of this stage in all.
        loss: loss of the last step, the mean over all processes.
        seconds_left: for all stages, at the speed of this stage so far.
    """

    stage: int
    stages: int
    step: int
    steps: int
    loss: float
    seconds_left: float


Observer = Callable[[StepProgress], None]


def ignore(_progress: StepProgress) -> None:
    """Observe nothing."""


class Reporter(Protocol):
    """A receiver of a training run's messages; the command line's `Output` is one."""

    def log(self, message: str) -> None:
        """Report a progress note."""

    def warn(self, message: str) -> None:
        """Report a warning."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Step]:
        """Open a display of a long piece of work: a `uino_deploy.progress.Progress`."""


class Silence:
    """Drops all messages."""

    def log(self, message: str) -> None:
        """Drop a line."""

    def warn(self, message: str) -> None:
        """Drop a warning."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Step]:
        """Count silently."""
        return silent(what, total)


class Logging(Silence):
    """Sends messages to Python's logger `uino_deploy.training`."""

    def log(self, message: str) -> None:
        """Log a line at level INFO."""
        _LOGGER.info(message)

    def warn(self, message: str) -> None:
        """Log a warning."""
        _LOGGER.warning(message)


LOGGING = Logging()


def narrator(reporter: Reporter) -> Observer:
    """Return an observer that reports a line every 30 seconds and at the end of each stage."""
    last_line = time.monotonic()

    def observe(progress: StepProgress) -> None:
        nonlocal last_line
        now = time.monotonic()
        if progress.step < progress.steps and now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        reporter.log(
            f"stage {progress.stage + 1} of {progress.stages}: "
            f"step {progress.step} of {progress.steps}, loss {progress.loss:.4g}, "
            f"{progress.seconds_left / 60:.1f} min left"
        )

    return observe
