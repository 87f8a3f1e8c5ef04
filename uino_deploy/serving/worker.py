"""The work of a service, in a process of its own: one predictor and the classes' folder."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
from PIL import Image

from uino_deploy.bundle.support import Support, describe_model
from uino_deploy.child import end_with_parent
from uino_deploy.errors import InputError, UinoDeployError
from uino_deploy.images import UInt8, load_image
from uino_deploy.images.opening import Received, read_header
from uino_deploy.letters import draw_letter
from uino_deploy.runtime import Encoded, Predictor
from uino_deploy.serving.answers import describe_result, png_of
from uino_deploy.serving.library import Library
from uino_deploy.serving.messages import Class, Query, Segmented
from uino_deploy.serving.refusals import Refused, refusal
from uino_deploy.serving.settings import Limits, Settings

_T = TypeVar("_T")

# Images that a measured batch has, and the share of the time that it must save.
_MEASURED, _GAIN = 8, 0.1


@dataclass(frozen=True)
class SegmentJob:
    """An image to segment; `query.classes` are names with commas between."""

    image: bytes
    query: Query


@dataclass(frozen=True)
class EnrollJob:
    """A class to enroll from images and masks, and images without it."""

    name: str
    shots: tuple[tuple[Received, Received], ...]
    negatives: tuple[Received, ...]


Job = SegmentJob | EnrollJob


@dataclass(frozen=True)
class Answer:
    """A body for a client, and the time of each step.

    Attributes:
        status: HTTP's status.
        body: JSON.
        seconds: time by step, for the metrics.
        batch: images that shared the encoder's run.
    """

    status: int
    body: bytes
    seconds: dict[str, float]
    batch: int = 1


class Worker:
    """A loaded bundle that answers jobs."""

    def __init__(self, settings: Settings) -> None:
        self.predictor = settings.load(settings.bundle)
        bundle = self.predictor.bundle
        self.library = Library(settings.classes, bundle.manifest, bundle.require_signature)
        self._limits = settings.limits
        self._warm_up()
        self.batch = settings.batch or best_batch(self.predictor)

    def segment(self, jobs: Sequence[SegmentJob]) -> list[Answer | Refused]:
        """Answer images; those that can be read share one run of the encoder."""
        start = time.perf_counter()
        read = [_attempt(partial(self._read, job)) for job in jobs]
        decoded = time.perf_counter()
        images = [each[0] for each in read if not isinstance(each, Refused)]
        encoded = _attempt(lambda: self.predictor.encode_all(images) if images else [])
        if isinstance(encoded, Refused):
            return [each if isinstance(each, Refused) else encoded for each in read]
        seconds = {
            "decode": (decoded - start) / len(jobs),
            "encode": (time.perf_counter() - decoded) / max(1, len(images)),
        }
        features = iter(encoded)
        answers: list[Answer | Refused] = []
        for job, each in zip(jobs, read, strict=True):
            if isinstance(each, Refused):
                answers.append(each)
                continue
            work = partial(self._answer, job.query, next(features), each[1], seconds, len(images))
            answers.append(_attempt(work))
        return answers

    def enroll(self, job: EnrollJob) -> Answer | Refused:
        """Enroll a class and write its file, whole or not at all."""
        return _attempt(partial(self._enroll, job))

    def _read(self, job: SegmentJob) -> tuple[UInt8, list[Support]]:
        names = job.query.classes.split(",")
        supports = [self.library.read(name) for name in names]
        picture = Received(job.image, "that was sent")
        check_pixels(picture, self._limits)
        return load_image(picture), supports

    def _answer(
        self,
        query: Query,
        encoded: Encoded,
        supports: list[Support],
        shared: dict[str, float],
        batch: int,
    ) -> Answer:
        start = time.perf_counter()
        results = self.predictor.predict(encoded, supports, query.threshold, query.min_score)
        predicted = time.perf_counter()
        found = [describe_result(each, query) for each in results]
        picture = png_of(results) if query.masks == "png" else None
        seconds = {
            **shared,
            "predict": predicted - start,
            "write": time.perf_counter() - predicted,
        }
        answer = Segmented(
            width=encoded.width,
            height=encoded.height,
            classes=found,
            model=describe_model(self.predictor.bundle.manifest),
            batch=batch,
            seconds={name: round(value, 6) for name, value in seconds.items()},
            label_map=picture,
        )
        return Answer(200, msgspec.json.encode(answer), seconds, batch)

    def _enroll(self, job: EnrollJob) -> Answer:
        start = time.perf_counter()
        path = self.library.path(job.name)
        for image, mask in job.shots:
            check_pixels(image, self._limits)
            check_pixels(mask, self._limits, "mask")
        for image in job.negatives:
            check_pixels(image, self._limits)
        support = self.predictor.enroll(job.shots, job.name, job.negatives)
        existed = path.exists()
        enrolled = time.perf_counter()
        support.save(path, force=True)
        seconds = {
            "enroll": enrolled - start,
            "write": time.perf_counter() - enrolled,
        }
        body = msgspec.json.encode(describe_support(support))
        return Answer(200 if existed else 201, body, seconds)

    def _warm_up(self) -> None:
        """Load every piece before the first request waits for it."""
        image, mask = draw_letter(0)
        support = self.predictor.enroll([(image, mask)], "warm-up")
        _ = self.predictor.predict(image, support, min_score=0).instances


def describe_support(support: Support) -> Class:
    """Return what is told of a class."""
    return Class(
        name=support.name,
        shots=support.shots,
        calibrated=support.calibration is not None,
        model=support.model,
        precision=support.precision,
    )


def check_pixels(picture: Received, limits: Limits, what: str = "image") -> None:
    """Refuse a picture that is larger than the service decodes, before it is decoded.

    Raises:
        Refused: it has too many pixels.
        InputError: it is no picture.
    """
    try:
        header = read_header(picture, what)
        pixels = header.height * header.width
    except InputError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        pixels = limits.pixels + 1
    if pixels > limits.pixels:
        raise Refused(
            413, f"{what} {picture} has more than {limits.pixels} pixels; send a smaller one"
        )


def best_batch(predictor: Predictor, most: int = _MEASURED) -> int:
    """Return how many images should share a run of the encoder: `most` if that is faster, else 1.

    A GPU with an engine for it gains; a CPU that is busy with one image does not.
    """
    image, _ = draw_letter(0)

    def seconds(count: int) -> float:
        spent = []
        for _ in range(4):
            start = time.perf_counter()
            predictor.encode_all([image] * count)
            predictor.backend.synchronise()
            spent.append(time.perf_counter() - start)
        return min(spent[1:]) / count

    try:
        return most if seconds(most) < (1 - _GAIN) * seconds(1) else 1
    except UinoDeployError:  # the engine was built for fewer images
        return 1


_started: list[Worker] = []


def start(settings: Settings) -> int:
    """Load the bundle in this process, which ends with its parent; return the size of a batch."""
    # The parent decides when its workers end: a signal to the group lets them finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    _started.append(Worker(settings))
    return _started[0].batch


def work(jobs: Sequence[Job]) -> list[Answer | Refused]:
    """Answer jobs of one kind in a process where `start` has run."""
    worker = _started[0]
    images = [job for job in jobs if isinstance(job, SegmentJob)]
    if images:
        return worker.segment(images)
    return [worker.enroll(job) for job in jobs if isinstance(job, EnrollJob)]


def _attempt(step: Callable[[], _T]) -> _T | Refused:
    """Return what a step gives, or what a client is told of its error."""
    try:
        return step()
    except Exception as error:
        told = refusal(error)
        if told.status == 500:
            traceback.print_exc(file=sys.stderr)
        return told
