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
_SECONDS_BETWEEN_LIVE = 0.5
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
        seconds_left: for all stages, at the speed of this stage so far; an early stop is sooner.
        miou: the last validation mIoU, in per cent; None without validation.
        best: the highest validation mIoU so far and its step.
    """

    stage: int
    stages: int
    step: int
    steps: int
    loss: float
    seconds_left: float
    miou: float | None = None
    best: tuple[float, int] | None = None


Observer = Callable[[StepProgress], None]


def ignore(_progress: StepProgress) -> None:
    """Observe nothing."""


class Reporter(Protocol):
    """A receiver of a training run's messages; the command line's `Output` is one."""

    def log(self, message: str) -> None:
        """Report a progress note."""

    def warn(self, message: str) -> None:
        """Report a warning."""

    def live(self, message: str) -> None:
        """Show a line that the next one replaces, where there is a terminal; "" removes it."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Step]:
        """Open a display of a long piece of work: a `uino_deploy.progress.Progress`."""


class Silence:
    """Drops all messages."""

    def log(self, message: str) -> None:
        """Drop a line."""

    def warn(self, message: str) -> None:
        """Drop a warning."""

    def live(self, message: str) -> None:
        """Drop a line."""

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
    """Return an observer with a live line, and a lasting one now and then.

    Lasting lines come every 30 seconds and at the end of each stage.
    """
    last_line = last_live = time.monotonic()

    def observe(progress: StepProgress) -> None:
        nonlocal last_line, last_live
        now = time.monotonic()
        if progress.step == progress.steps or now - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = last_live = now
            reporter.live("")
            reporter.log(_line(progress))
        elif now - last_live >= _SECONDS_BETWEEN_LIVE:
            last_live = now
            reporter.live(_line(progress))

    return observe


def _line(progress: StepProgress) -> str:
    validation = ""
    if progress.miou is not None and progress.best is not None:
        miou, step = progress.best
        validation = f"validation mIoU {progress.miou:.1f} (best {miou:.1f} at step {step}), "
    return (
        f"stage {progress.stage + 1} of {progress.stages}: "
        f"step {progress.step} of {progress.steps}, loss {progress.loss:.4g}, {validation}"
        f"{progress.seconds_left / 60:.1f} min left"
    )
