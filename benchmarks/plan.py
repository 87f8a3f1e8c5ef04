"""The plan of a benchmark: what it measures, and whether that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uino_deploy.benchmarks.models import piece_precisions
from uino_deploy.benchmarks.record import MAIN, Case
from uino_deploy.bundle import Bundle
from uino_deploy.errors import InputError
from uino_deploy.runtime.backends import BACKENDS

# After a backend's name: without the native operators.
PORTABLE = "/portable"


@dataclass(frozen=True)
class Plan:
    """A plan of what a benchmark measures.

    Attributes:
        bundles: one or more, of one model.
        backends: the runtime's, such as "onnxruntime", "onnxruntime:cuda" or "openvino/portable".
        peers: names of `table.PEERS`; they need `model`.
        threads: numbers of CPU threads, measured separately.
        cases: the main case and others.
        rounds: turns per runner.
        warmup: untimed queries per turn.
        seconds: minimum length of a turn.
        iterations: queries per turn, instead of `seconds`.
        cold_starts: fresh processes per runner.
        episodes: held-out episodes for the mIoU; 0 for none.
        images: a folder of photographs; those of installed packages if None.
        model: writes the float32 model's checkpoint to a path for an image size; None to measure
            accuracy on the example stored in the bundle.
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
            InputError: the bundles are of several models or two are of one kind, a backend is
                unknown, or the peers' PyTorch model is missing.
        """
        self._check_bundles()
        for backend in self.backends:
            if backend.removesuffix(PORTABLE).partition(":")[0] not in BACKENDS:
                known = ", ".join(BACKENDS)
                raise InputError(f"unknown backend {backend!r}", f"choose from {known}")
        if self.peers and self.model is None:
            raise InputError(
                "the peers need the PyTorch model", "give the checkpoint that was exported"
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
                    f"{bundle.root} and {first.root} are different models",
                    "measure bundles of one model together",
                )
            kind = f"{'+'.join(piece_precisions(bundle))} at {one.image_size} px"
            if kind in kinds:
                raise InputError(
                    f"two bundles are {kind}: the record could not distinguish them",
                    "measure them one after the other and use `uino-deploy compare`",
                )
            kinds.append(kind)


def with_portable(backends: Sequence[str]) -> list[str]:
    """Return backends, and after each that has native operators its portable form."""
    found: dict[str, None] = {}
    for backend in backends:
        found[backend] = None
        if backend in BACKENDS and "portable" in BACKENDS[backend][1]:
            found[f"{backend}{PORTABLE}"] = None
    return list(found)
