"""A bundle on one of the runtime's backends: the product itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from uino_deploy.benchmarks.plan import PORTABLE
from uino_deploy.benchmarks.runners.runner import Found, Task
from uino_deploy.benchmarks.work import Shot, UInt8
from uino_deploy.bundle import Bundle, Piece
from uino_deploy.images import Float32, load_image, preprocess_image, upsample_logits
from uino_deploy.pipeline import QUERY
from uino_deploy.runtime import Predictor, Support
from uino_deploy.runtime.backends import BACKENDS, BackendOptions, open_backend
from uino_deploy.runtime.session import (
    Array,
    Backend,
    DeviceMemory,
    Done,
    Item,
    Session,
    Value,
    run_pieces,
    run_to_host,
)


class BundleRunner:
    """Segments through `Predictor`, as a user would; a batch goes through the pieces at once."""

    def __init__(self, task: Task) -> None:
        name, _, provider = task.runner.removesuffix(PORTABLE).partition(":")
        known = BACKENDS[name][1] if name in BACKENDS else frozenset()
        options = BackendOptions(
            providers=[provider] if provider else None,
            threads=task.threads if "threads" in known else None,
            portable=task.runner.endswith(PORTABLE),
        )
        self.backend = TimedBackend(open_backend(name, options))
        bundle = Bundle.open(task.bundle or "", require_signature=False if task.own else None)
        self.predictor = Predictor(bundle, self.backend)

    def about(self) -> dict[str, str]:
        """Return the backend's description of itself."""
        return self.backend.describe()

    def enroll(self, shots: Sequence[Shot]) -> Support:
        """Enroll a class."""
        return self.predictor.enroll(shots, "class", calibrated=False)

    def save(self, enrolled: Support, path: Path) -> None:
        """Write a support file."""
        enrolled.save(path)

    def load(self, path: Path) -> Support:
        """Read a support file that `save` has written."""
        return Support.load(path, require_signature=False)

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Support]
    ) -> list[list[Found]]:
        """Segment; see `Runner.segment`."""
        if len(queries) > 1:
            return self._segment_batch(queries, classes)
        results = self.predictor.predict(queries[0], classes)
        return [[Found(result.mask, result.logits) for result in results]]

    def stages(self, query: Path, enrolled: Support) -> dict[str, float]:
        """Time decoding, preprocessing, each piece, and postprocessing; see `Runner.stages`."""
        self.backend.begin()
        begun = time.perf_counter()
        image = load_image(query)
        decoded = time.perf_counter()
        encoded = self.predictor.encode(image)
        between = time.perf_counter()
        before = dict(self.backend.seconds)
        self.predictor.predict(encoded, enrolled)
        ended = time.perf_counter()
        pieces = self.backend.end()
        after = sum(pieces.values()) - sum(before.values())
        return {
            "decode": decoded - begun,
            "preprocess": between - decoded - sum(before.values()),
            **pieces,
            "postprocess": ended - between - after,
        }

    def _segment_batch(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Support]
    ) -> list[list[Found]]:
        """Run every piece once on the whole batch, for each class."""
        images = [load_image(query) if isinstance(query, Path) else query for query in queries]
        size = self.predictor.bundle.config.image_size
        pixels = np.stack([preprocess_image(image, size) for image in images])
        once, each_class = (
            [self.backend.load(self.predictor.bundle, piece) for piece in pieces]
            for pieces in QUERY.split({"image"})
        )
        encoded = run_pieces(QUERY, once, {"image": pixels})
        results: list[list[Found]] = [[] for _ in images]
        for support in classes:
            known = {**encoded, **support.features}
            logits: Float32 = run_to_host(QUERY, each_class, known)["logits"]
            for image, plane, found in zip(images, logits[:, 0], results, strict=True):
                mask = upsample_logits(plane, *image.shape[:2]) > 0
                found.append(Found(mask.astype(np.uint8), plane))
        return results


class TimedBackend:
    """A backend that times its pieces on request, and otherwise never waits."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.timing = False
        self.seconds: dict[str, float] = {}
        self._sessions: dict[str, _TimedSession] = {}

    def begin(self) -> None:
        """Start timing from zero."""
        self.seconds = {}
        self.timing = True

    def end(self) -> dict[str, float]:
        """Stop timing; return the seconds of each piece that ran."""
        self.timing = False
        return self.seconds

    def load(self, bundle: Bundle, piece: str) -> Session:
        """Load a piece once."""
        return self.load_all(bundle, [piece])[piece]

    def load_all(self, bundle: Bundle, pieces: Sequence[str]) -> dict[str, Session]:
        """Load pieces once."""
        missing = [piece for piece in pieces if piece not in self._sessions]
        for piece, session in self._backend.load_all(bundle, missing).items():
            self._sessions[piece] = _TimedSession(self, session)
        return {piece: self._sessions[piece] for piece in pieces}

    def describe(self) -> dict[str, str]:
        """Return the backend's description."""
        return self._backend.describe()

    def synchronise(self) -> None:
        """Wait for the backend."""
        self._backend.synchronise()

    def each(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Do the work for each item; one after the other while timing."""
        return [work(item) for item in items] if self.timing else self._backend.each(work, items)

    def memory(self) -> DeviceMemory | None:
        """Return the backend's memory of a device."""
        return self._backend.memory()


class _TimedSession:
    """A piece whose runs are timed, with a wait, while its backend is timing."""

    def __init__(self, backend: TimedBackend, session: Session) -> None:
        self._backend = backend
        self._session = session

    @property
    def piece(self) -> Piece:
        """The piece's description."""
        return self._session.piece

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Array]:
        """Run and time the piece."""
        begun = time.perf_counter()
        outputs = self._session.run(feeds)
        self._add(time.perf_counter() - begun)
        return outputs

    def run_resident(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run and time the piece, leaving its outputs in the backend's memory."""
        begun = time.perf_counter()
        outputs = self._session.run_resident(feeds)
        if self._backend.timing:
            self._backend.synchronise()
        self._add(time.perf_counter() - begun)
        return outputs

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, Value]:
        """Move inputs to the backend's memory."""
        return self._session.upload(feeds)

    def _add(self, seconds: float) -> None:
        if self._backend.timing:
            name = self.piece.name
            self._backend.seconds[name] = self._backend.seconds.get(name, 0.0) + seconds
