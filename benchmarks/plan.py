"""What a benchmark measures, checked before it starts."""

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
    """What a benchmark measures.

    Attributes:
        bundles: one or more, of one model.
        backends: the runtime's, such as "onnxruntime" or "onnxruntime:cuda".
        peers: names of `table.PEERS`; they need `model`.
        threads: CPU threads; every count is measured by itself.
        cases: the main case and others.
        rounds: number of turns of every runner.
        warmup: untimed queries in a turn.
        seconds: shortest length of a turn.
        iterations: queries in a turn, instead of `seconds`.
        cold_starts: number of fresh processes of every runner.
        episodes: held-out episodes for the mIoU; 0 for none.
        images: a folder of photographs; those of installed packages when None.
        model: writes the float32 model's checkpoint to a path for an image size; None to judge by
            the example that the bundle carries.
        profile: also profile every bundle, layer by layer.
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
        """Refuse bundles and options that cannot be compared.

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
