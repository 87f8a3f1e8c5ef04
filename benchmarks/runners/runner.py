"""A runner and its task: one small protocol for backends and peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from uino_deploy.benchmarks.work import Shot, UInt8
from uino_deploy.images import Float32


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """The task of a worker process.

    Attributes:
        runner: a backend, optionally with a provider as in "onnxruntime:cuda"; a key of
            `table.PEERS`; or `table.REFERENCE`.
        precision: fp32, fp16, bf16, int8 or mixed.
        threads: CPU threads.
        image_size: side of the square image in pixels.
        work: folder of `work.prepare`.
        scratch: a folder for this task only.
        bundle: the bundle's folder, for backends.
        own: this benchmark exported the bundle, which therefore has no signature.
        model: a uino-deploy checkpoint, for peers.
    """

    runner: str
    precision: str
    threads: int
    image_size: int
    work: str
    scratch: str
    bundle: str | None = None
    own: bool = False
    model: str | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """One class in one query: mask uint8 [H, W] at its own size, logits float32 [4h, 4w]."""

    mask: UInt8
    logits: Float32


Enrolled = TypeVar("Enrolled")


class Runner(Protocol[Enrolled]):
    """One way to run the model, from image files to masks."""

    def about(self) -> dict[str, str]:
        """Return versions and devices for the record; no paths."""

    def enroll(self, shots: Sequence[Shot]) -> Enrolled:
        """Encode a class's shots once, for every later query."""

    def save(self, enrolled: Enrolled, path: Path) -> None:
        """Write an enrolled class to a file that `load` reads in another process."""

    def load(self, path: Path) -> Enrolled:
        """Read an enrolled class."""

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Enrolled]
    ) -> list[list[Found]]:
        """Segment every class in every query; this is timed end to end.

        Raises:
            CannotRun: the runner does not support the case.
        """

    def stages(self, query: Path, enrolled: Enrolled) -> dict[str, float]:
        """Segment one class in one query; return the seconds of each part, if any."""


class CannotRun(Exception):
    """A runner does not support a case, such as more shots than its graph was traced with."""
