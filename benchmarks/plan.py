"""What a benchmark shall do, and whether it can be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uino_deploy.benchmarks.models import piece_precisions
from uino_deploy.benchmarks.record import MAIN, Case
from uino_deploy.bundle import Bundle
from uino_deploy.errors import InputError
from uino_deploy.runtime.backends import BACKENDS


@dataclass(frozen=True)
class Plan:
    """What a benchmark does.

    Attributes:
        bundles: one or more, of one model.
        backends: of the runtime, such as "onnxruntime" or "onnxruntime:cuda".
        peers: names of `table.PEERS`; they need `model`.
        threads: of the CPU; every count is measured by itself.
        cases: the main case and others.
        rounds: turns of every runner.
        warmup: untimed queries of a turn.
        seconds: of a turn, at least.
        iterations: of a turn, instead.
        cold_starts: fresh processes of every runner.
        episodes: held-out episodes for the mIoU; 0 for none.
        images: a folder of photographs; those of installed packages when None.
        model: makes the float32 model's checkpoint at a path, for an image size; None to judge by
            the example that the bundle carries.
        profile: also profile the backends that ONNX Runtime runs.
    """

    bundles: Sequence[Bundle]
    backends: Sequence[str]
    peers: Sequence[str]
    threads: Sequence[int]
    cases: Sequence[Case]
    rounds: int = 5
    warmup: int = 1
    seconds: float | None = 2.0
    iterations: int | None = None
    cold_starts: int = 3
    episodes: int = 0
    images: Path | None = None
    model: Callable[[Path, int], None] | None = None
    profile: bool = False

    def check(self) -> None:
        """Refuse what could not be told apart or compared.

        Raises:
            InputError: bundles of several models or two of one kind, an unknown backend, or peers
                without the PyTorch model.
        """
        self._check_bundles()
        for backend in self.backends:
            if backend.partition(":")[0] not in BACKENDS:
                known = ", ".join(BACKENDS)
                raise InputError(f"unknown backend {backend!r}", f"choose from {known}")
        if self.peers and self.model is None:
            raise InputError(
                "the peers need the PyTorch model", "name the checkpoint that was exported"
            )
        if MAIN not in self.cases:
            raise InputError("one query of one class and one shot is always among the cases")

    def _check_bundles(self) -> None:
        first = self.bundles[0]
        kinds = []
        for bundle in self.bundles:
            one, other = bundle.config, first.config
            same_size = one.image_size == other.image_size
            if (one.preset, one.variant) != (other.preset, other.variant) or (
                same_size and bundle.manifest.fingerprint != first.manifest.fingerprint
            ):
                raise InputError(
                    f"{bundle.root} is another model than {first.root}",
                    "measure bundles of one model together",
                )
            kind = f"{'+'.join(piece_precisions(bundle))} at {one.image_size} px"
            if kind in kinds:
                raise InputError(
                    f"two bundles are {kind}: the record could not tell them apart",
                    "measure them one after the other and use `uino-deploy compare`",
                )
            kinds.append(kind)
