"""The worker of a runner's own process, which `uino_deploy.child` runs: it answers requests.

A crash, a memory peak or a thread pool in it affects only this runner.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np

from uino_deploy.benchmarks import energy, resources, work
from uino_deploy.benchmarks.record import MAIN, Case
from uino_deploy.benchmarks.runners.runner import CannotRun, Found, Runner, Task
from uino_deploy.benchmarks.runners.table import make_runner
from uino_deploy.child import Note
from uino_deploy.errors import CheckFailed, DependencyError, UinoDeployError
from uino_deploy.tolerances import relative_l2

EPISODES = "episodes"
OUTPUTS = "outputs.npz"

# Between two processes of one runner, only the order of sums over threads may differ.
_SAME = 1e-2


class Answer(TypedDict, total=False):
    """The answer to a request; `error` and `refused` on failure."""

    error: str
    refused: bool
    about: dict[str, str]
    samples: list[float]
    stages: dict[str, list[float]]
    joules: float | None
    resident: int | None
    peak: int | None
    device: int | None
    notes: dict[str, str]
    pieces: list[dict[str, Any]]
    layers: list[dict[str, Any]]


class Worker:
    """One runner and the requests that it answers."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = Path(task.work)
        self.scratch = Path(task.scratch)
        self.work = work.read(self.folder)
        self.runner: Runner[Any] = make_runner(task)
        self._classes: dict[tuple[int, int], Any] = {}

    def about(self) -> Answer:
        """Describe the runner."""
        return {"about": self.runner.about()}

    def judge(self) -> Answer:
        """Enroll every class, save it, and write the logits and masks of every case."""
        outputs: dict[str, np.ndarray[Any, Any]] = {}
        notes: dict[str, str] = {}
        for case in self.work.cases:
            try:
                self._enroll(case)
                for first, queries in enumerate(self._rotation(case)):
                    results = self.runner.segment(queries, self._of(case))
                    outputs |= _packed(f"{case}, query {first}", results)
            except CannotRun as error:
                notes[str(case)] = str(error)
        if self.work.episodes:
            outputs[EPISODES] = self._episodes()
        with (self.scratch / OUTPUTS).open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type] # numpy's stub wants one dtype
        return {"notes": notes}

    def pieces(self) -> Answer:
        """Compare each piece of a bundle with the reference's own tensors."""
        from uino_deploy.benchmarks.piece_errors import compare_pieces
        from uino_deploy.benchmarks.runners.bundle import BundleRunner

        if not isinstance(self.runner, BundleRunner):
            return {"pieces": []}
        examples = sorted(self.folder.glob(f"example-{self.task.image_size}-*.safetensors"))
        return {"pieces": compare_pieces(self.runner, examples)}

    def examples(self) -> Answer:
        """Write the reference's tensors between the pieces, for two photographs."""
        from uino_deploy.benchmarks.piece_errors import write_example
        from uino_deploy.benchmarks.runners.torch_model import TorchRunner

        if isinstance(self.runner, TorchRunner):
            for number in range(min(2, len(self.work.photographs))):
                (query,) = self.work.queries(self.folder, MAIN, number)
                shots = self.work.shots(self.folder, number, 1)
                name = f"example-{self.task.image_size}-{number}.safetensors"
                write_example(self.runner.model, query, shots, self.folder / name)
        return {}

    def first(self) -> Answer:
        """Segment the first query with the first class, which ends a cold start."""
        enrolled = self.runner.load(self.scratch / "class-0-1")
        self.runner.segment(self.work.queries(self.folder, MAIN), [enrolled])
        return {}

    def measure(
        self,
        case: dict[str, int],
        warmup: int,
        seconds: float | None,
        iterations: int | None,
        staged: bool,
    ) -> Answer:
        """Take a turn: untimed queries, then timed ones, and separately the main case's parts."""
        shape = Case(**case)
        queries, classes = self._rotation(shape), self._of(shape)
        for number in range(warmup):
            self.runner.segment(queries[number % len(queries)], classes)
        meter = energy.EnergyMeter()
        meter.start()
        samples, answers = _repeat(
            lambda number: self.runner.segment(queries[number % len(queries)], classes),
            seconds,
            iterations or 0,
        )
        joules = meter.stop()
        self._check_timed(shape, (len(samples) - 1) % len(queries), answers)
        stages: dict[str, list[float]] = {}
        for _ in range(len(samples) if staged else 0):
            for name, span in self.runner.stages(queries[0][0], classes[0]).items():
                stages.setdefault(name, []).append(span)
        each = None if joules is None else joules / len(samples)
        return {"samples": samples, "stages": stages, "joules": each}

    def memory(self) -> Answer:
        """Return this process's memory."""
        resident, peak = resources.resident_bytes()
        return {"resident": resident, "peak": peak, "device": _device_bytes(self.runner)}

    def profile(self) -> Answer:
        """Profile the pieces of a bundle, layer by layer."""
        from uino_deploy.benchmarks.profile import profile_pieces
        from uino_deploy.benchmarks.runners.bundle import BundleRunner

        if not isinstance(self.runner, BundleRunner):
            return {"layers": []}
        trace = self.scratch / "trace.json"
        return {"layers": profile_pieces(self.runner, self.task, trace)}

    def _rotation(self, case: Case) -> list[list[Path]]:
        """Return the queries to rotate: every photograph in the main case, one batch in others."""
        firsts = range(len(self.work.photographs)) if case == MAIN else range(1)
        return [self.work.queries(self.folder, case, first) for first in firsts]

    def _check_timed(self, case: Case, first: int, found: list[list[Found]]) -> None:
        """Refuse a speed if the timed result is not the checked one."""
        key = f"{case}, query {first}, logits"
        with np.load(self.scratch / OUTPUTS) as judged:
            error = relative_l2(_packed(key.removesuffix(", logits"), found)[key], judged[key])
        if not error <= _SAME:
            raise CheckFailed(
                f"{case}: the timed result differs from the checked one by {error:.1e} relative L2"
            )

    def _enroll(self, case: Case) -> None:
        for number in range(case.classes):
            if (number, case.shots) not in self._classes:
                shots = self.work.shots(self.folder, number, case.shots)
                enrolled = self.runner.enroll(shots)
                self._classes[number, case.shots] = enrolled
                self.runner.save(enrolled, self.scratch / f"class-{number}-{case.shots}")

    def _of(self, case: Case) -> list[Any]:
        """Return a case's classes; those that `judge` saved are read on first use."""
        for key in ((number, case.shots) for number in range(case.classes)):
            if key not in self._classes:
                name = f"class-{key[0]}-{key[1]}"
                self._classes[key] = self.runner.load(self.scratch / name)
        return [self._classes[number, case.shots] for number in range(case.classes)]

    def _episodes(self) -> np.ndarray[Any, Any]:
        """Return the masks of the demo's held-out episodes, one bit per pixel."""
        from uino_deploy.data import draw_episode, load_pool
        from uino_deploy.evaluation.episodes import EVALUATION_SEED

        pool, masks = load_pool("held-out"), []
        for index in range(self.work.episodes):
            episode = draw_episode(pool, EVALUATION_SEED, index)
            support = self.runner.enroll([(each.image, each.mask) for each in episode.support])
            ((result,),) = self.runner.segment([episode.query.image], [support])
            masks.append(np.packbits(result.mask))
        return np.stack(masks)


def _packed(key: str, found: list[list[Found]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return all logits of a case as one array, and its masks as bits."""
    flat = [one for results in found for one in results]
    masks = np.concatenate([one.mask.ravel() for one in flat])
    return {
        f"{key}, logits": np.stack([one.logits for one in flat]),
        f"{key}, masks": np.packbits(masks),
    }


def _repeat(
    query: Callable[[int], list[list[Found]]], seconds: float | None, least: int
) -> tuple[list[float], list[list[Found]]]:
    """Time a function at least `least` times, and at least once, until `seconds` have passed.

    Returns:
        The seconds of each call, and the result of the last.
    """
    samples: list[float] = []
    begun = time.perf_counter()
    while True:
        start = time.perf_counter()
        result = query(len(samples))
        end = time.perf_counter()
        samples.append(end - start)
        if len(samples) >= least and end - begun >= (seconds or 0.0):
            return samples, result


def _device_bytes(runner: Runner[Any]) -> int | None:
    """Return this process's GPU memory as reported by the driver, else by its backend."""
    from uino_deploy.benchmarks.runners.bundle import BundleRunner
    from uino_deploy.runtime import nvml

    known = nvml.process_bytes(os.getpid())
    if known is None and isinstance(runner, BundleRunner):
        counted = runner.backend.memory()
        known = None if counted is None else counted.engines + counted.buffers
    return known


class Answers:
    """A job that loads the task of its first request and describes it, then answers the others."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, request: dict[str, Any], _note: Note) -> Answer:
        """Answer a request; any error of a backend becomes its runner's failure."""
        try:
            if self._worker is None:
                self._worker = Worker(msgspec.convert(request, Task))
                return self._worker.about()
            answer: Answer = getattr(self._worker, request.pop("do"))(**request)
        except Exception as error:
            return _failure(error)
        return answer


answer = Answers()


def _failure(error: Exception) -> Answer:
    traceback.print_exc(file=sys.stderr)
    what = str(error) if isinstance(error, UinoDeployError) else f"{type(error).__name__}: {error}"
    return {"error": what, "refused": isinstance(error, DependencyError)}
