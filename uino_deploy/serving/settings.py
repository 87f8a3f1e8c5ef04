"""What a service is started with: its bundle, its folder of classes, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor


@dataclass(frozen=True)
class Limits:
    """Limits of a service, each answered with one line where a request exceeds it.

    Attributes:
        body: bytes of a request's body.
        pixels: pixels of an image or a mask.
        classes: classes of one request.
        shots: shots of a class, and negatives of a class.
        queue: requests that wait for a worker; one more is answered 503 at once.
        deadline: seconds from a request's first byte to its answer.
    """

    body: int = 32_000_000
    pixels: int = 50_000_000
    classes: int = 32
    shots: int = 32
    queue: int = 64
    deadline: float = 30.0

    @property
    def held(self) -> int:
        """Bytes of all bodies that the service holds at once."""
        return max(256_000_000, 2 * self.body)


@dataclass(frozen=True)
class Settings:
    """What workers need; it crosses to their processes.

    Attributes:
        bundle: the bundle's folder.
        classes: the folder of support files, one `NAME.safetensors` for each class.
        load: opens the bundle; a function or object that can be pickled.
        workers: processes that run the model.
        batch: the most images that share a run of the encoder; None to measure at the start
            whether sharing is faster.
        limits: the limits.
    """

    bundle: Path
    classes: Path
    load: Callable[[Path], Predictor]
    workers: int = 1
    batch: int | None = None
    limits: Limits = field(default_factory=Limits)
