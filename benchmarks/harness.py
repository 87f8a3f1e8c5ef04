"""Run a benchmark: prepare the work, judge every runner, time those that are right, in turns.

- reference: float32 PyTorch on all the work, in its own process.
- judge: each runner in its own process: enroll, save, logits and masks of every case.
- time: the runners within their budget, each in a fresh process; round after round, every runner
  has its turn in each, so that noise hits all alike.
- start: fresh processes again, from the process's start to the first mask.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy.benchmarks import machine, work
from uino_deploy.benchmarks.accuracy import (
    Outputs,
    case_accuracy,
    judge,
    judge_by_stored,
    read_outputs,
)
from uino_deploy.benchmarks.models import piece_precisions
from uino_deploy.benchmarks.processes import WorkerFailed, WorkerProcess
from uino_deploy.benchmarks.record import (
    MAIN,
    Case,
    CaseResult,
    Entry,
    Layer,
    Memory,
    Method,
    Model,
    PieceError,
    Profile,
    Record,
    Timing,
)
from uino_deploy.benchmarks.resources import OthersCpu
from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.benchmarks.runners.table import PEERS, REFERENCE
from uino_deploy.benchmarks.statistics import summarise
from uino_deploy.benchmarks.worker import OUTPUTS
from uino_deploy.bundle import Bundle
from uino_deploy.errors import CheckFailed, DependencyError, InputError
from uino_deploy.runtime.backends import BACKENDS

Log = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]

# Where a backend keeps compiled models, inside the bundle.
CACHE = ".cache"

# Between two turns: the threads of the runner before stop spinning.
_SETTLE = 0.05


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


@dataclass
class _Subject:
    """An entry in the making: its task, its bundle, and the samples taken so far."""

    task: Task
    entry: Entry
    precisions: list[str]
    bundle: Bundle | None
    samples: dict[Case, list[list[float]]] = field(default_factory=dict)
    stages: dict[str, list[list[float]]] = field(default_factory=dict)
    joules: list[float] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        return self.entry.status == "passed"

    def stop(self, error: WorkerFailed, folder: Path) -> None:
        """Note that it failed, or cannot run here; no path goes into the record."""
        self.entry.status = "refused" if error.refused else "failed"
        self.entry.reason = _without_paths(error.reason, folder, self.bundle)


def run_benchmark(plan: Plan, log: Log, progress: Progress, traces: Path | None = None) -> Record:
    """Measure everything that a plan names.

    Args:
        plan: what to do.
        log: receives a line for each phase.
        progress: opens a progress display from a description and a number of steps.
        traces: a folder for the profiles' traces.

    Raises:
        InputError: bundles of several models, or an unreadable image.
        CheckFailed: the reference could not be computed.
        DependencyError: no photograph is at hand, or no runner can run here.
    """
    _check(plan)
    with tempfile.TemporaryDirectory(prefix="uino-benchmark-") as name:
        folder = Path(name)
        prepared = work.prepare(folder, plan.images, plan.cases, plan.episodes)
        references = _references(plan, folder, log)
        subjects = _subjects(plan, folder)
        for subject in subjects:
            log(f"judging {subject.entry.name}, {subject.task.threads} threads")
            _judge(subject, references.get(subject.task.image_size), plan, folder)
        if all(subject.entry.status == "refused" for subject in subjects):
            raise DependencyError(f"nothing can run here: {subjects[0].entry.reason}")
        others = OthersCpu()
        groups = _groups(subjects)
        with progress("rounds", plan.rounds * len(groups)) as step:
            for group in groups:
                _time(group, plan, folder, others, step)
        log("starting cold")
        for group in groups:
            _start_cold(group, plan, folder)
        profiles = _profiles(subjects, folder, traces) if plan.profile else []
        for subject in subjects:
            _finish(subject, plan, references.get(subject.task.image_size))
        return _record(plan, prepared, others, subjects, profiles)


def _check(plan: Plan) -> None:
    first = plan.bundles[0].config
    for bundle in plan.bundles:
        if (bundle.config.preset, bundle.config.variant) != (first.preset, first.variant):
            raise InputError(
                f"{bundle.root} is another model than {plan.bundles[0].root}",
                "measure bundles of one preset and variant together",
            )
    for backend in plan.backends:
        if backend.partition(":")[0] not in BACKENDS:
            raise InputError(f"unknown backend {backend!r}", f"choose from {', '.join(BACKENDS)}")
    kinds = [(bundle.config.image_size, piece_precisions(bundle)) for bundle in plan.bundles]
    for number, kind in enumerate(kinds):
        if kind in kinds[:number]:
            raise InputError(
                f"two bundles are {'+'.join(kind[1])} at {kind[0]} px: the record could not tell "
                "them apart",
                "measure them one after the other and use `uino-deploy compare`",
            )
    if plan.peers and plan.model is None:
        raise InputError(
            "the peers need the PyTorch model", "name the checkpoint that was exported"
        )
    if MAIN not in plan.cases:
        raise InputError("the main case, one query of one class and one shot, is always measured")


def _references(plan: Plan, folder: Path, log: Log) -> dict[int, Outputs]:
    """Compute float32 PyTorch's outputs for each image size; none without a model."""
    found: dict[int, Outputs] = {}
    if plan.model is None:
        return found
    for size in sorted({bundle.config.image_size for bundle in plan.bundles}):
        log(f"computing the reference at {size} px")
        plan.model(_checkpoint(folder, size), size)
        task = _task(folder, f"reference-{size}", REFERENCE, "fp32", max(plan.threads), size)
        try:
            with WorkerProcess(task) as worker:
                worker.ask("judge")
                worker.ask("examples")
        except WorkerFailed as error:
            raise CheckFailed(f"the reference could not be computed: {error.reason}") from error
        found[size] = read_outputs(Path(task.scratch) / OUTPUTS)
    return found


def _subjects(plan: Plan, folder: Path) -> list[_Subject]:
    subjects = []
    for threads in plan.threads:
        for bundle in plan.bundles:
            for backend in plan.backends:
                subjects.append(_backend_subject(folder, bundle, backend, threads))
        for size in sorted({bundle.config.image_size for bundle in plan.bundles}):
            for peer in plan.peers:
                subjects.append(_peer_subject(folder, peer, size, threads))
    return subjects


def _backend_subject(folder: Path, bundle: Bundle, backend: str, threads: int) -> _Subject:
    precisions = piece_precisions(bundle)
    precision, size = "+".join(precisions), bundle.config.image_size
    name = f"{backend.replace(':', '-')}-{precision}-{size}-{threads}"
    task = _task(folder, name, backend, precision, threads, size, bundle)
    entry = _entry(f"{backend} {precision}", task, peer=False)
    return _Subject(task, entry, precisions, bundle)


def _peer_subject(folder: Path, peer: str, size: int, threads: int) -> _Subject:
    about = PEERS[peer]
    task = _task(folder, f"{peer}-{size}-{threads}", peer, about.precision, threads, size)
    return _Subject(task, _entry(about.title, task, peer=True), [about.precision], None)


def _entry(name: str, task: Task, peer: bool) -> Entry:
    return Entry(
        name=name,
        runner=task.runner,
        peer=peer,
        precision=task.precision,
        image_size=task.image_size,
        threads=task.threads,
        about={},
        status="passed",
    )


def _task(
    folder: Path,
    name: str,
    runner: str,
    precision: str,
    threads: int,
    size: int,
    bundle: Bundle | None = None,
) -> Task:
    scratch = folder / name
    scratch.mkdir()
    return Task(
        runner=runner,
        precision=precision,
        threads=threads,
        image_size=size,
        work=str(folder),
        scratch=str(scratch),
        bundle=None if bundle is None else str(bundle.root.resolve()),
        model=str(_checkpoint(folder, size)),
    )


def _checkpoint(folder: Path, size: int) -> Path:
    return folder / f"model-{size}.safetensors"


def _judge(subject: _Subject, reference: Outputs | None, plan: Plan, folder: Path) -> None:
    """Compute a runner's accuracy; it fails here where it is over its budget."""
    try:
        with WorkerProcess(subject.task) as worker:
            subject.entry.about = worker.about
            subject.notes = dict(worker.ask("judge")["notes"])
            known = worker.ask("pieces")["pieces"]
    except WorkerFailed as error:
        subject.stop(error, folder)
        return
    pieces = msgspec.convert(known, list[PieceError])
    if reference is None:
        accuracy = judge_by_stored(pieces, subject.precisions)
    else:
        trained = not plan.bundles[0].manifest.provenance.untrained
        outputs = read_outputs(Path(subject.task.scratch) / OUTPUTS)
        accuracy = judge(outputs, reference, pieces, subject.precisions, trained)
    subject.entry.accuracy = accuracy
    if accuracy.failures:
        subject.entry.status = "failed"
        subject.entry.reason = "; ".join(accuracy.failures)


def _groups(subjects: Sequence[_Subject]) -> list[list[_Subject]]:
    """Return the runners that take turns with each other: same thread count and image size."""
    groups: dict[tuple[int, int], list[_Subject]] = {}
    for subject in subjects:
        if subject.alive:
            key = subject.task.threads, subject.task.image_size
            groups.setdefault(key, []).append(subject)
    return list(groups.values())


def _time(
    group: Sequence[_Subject],
    plan: Plan,
    folder: Path,
    others: OthersCpu,
    step: Callable[[], None],
) -> None:
    """Give every runner its turn in every round, the order turned by one each time."""
    with ExitStack() as stack:
        workers: dict[int, WorkerProcess] = {}
        for index, subject in enumerate(group):
            try:
                workers[index] = stack.enter_context(WorkerProcess(subject.task))
                workers[index].ask("load_classes")
            except WorkerFailed as error:
                subject.stop(error, folder)
        for turn in range(plan.rounds):
            others.start([worker.number for worker in workers.values()])
            for offset in range(len(group)):
                index = (turn + offset) % len(group)
                if group[index].alive:
                    try:
                        _turn(group[index], workers[index], plan, first=turn == 0)
                    except WorkerFailed as error:
                        group[index].stop(error, folder)
            others.stop([worker.number for worker in workers.values()])
            step()


def _turn(subject: _Subject, worker: WorkerProcess, plan: Plan, first: bool) -> None:
    """Let one runner do every case that it has."""
    time.sleep(_SETTLE)
    for case in sorted(plan.cases, key=lambda each: each != MAIN):
        if str(case) in subject.notes:
            continue
        answer = worker.ask(
            "measure",
            case=msgspec.to_builtins(case),
            warmup=plan.warmup,
            seconds=None if plan.iterations else plan.seconds,
            iterations=plan.iterations,
            staged=case == MAIN,
        )
        subject.samples.setdefault(case, []).append(answer["samples"])
        if case == MAIN:
            for name, spans in answer["stages"].items():
                subject.stages.setdefault(name, []).append(spans)
            if answer["joules"] is not None:
                subject.joules.append(answer["joules"])
            if first:
                subject.entry.memory = _memory(worker.ask("memory"))


def _memory(answer: Any) -> Memory:
    return Memory(steady=answer["resident"], peak=answer["peak"], device=answer["device"])


def _start_cold(group: Sequence[_Subject], plan: Plan, folder: Path) -> None:
    """Time fresh processes up to their first mask, in turns: caches filled, and then deleted."""
    filled: dict[int, list[list[float]]] = {}
    deleted: dict[int, list[list[float]]] = {}
    for _ in range(plan.cold_starts):
        for index, subject in enumerate(group):
            if not subject.alive:
                continue
            try:
                filled.setdefault(index, []).append([_seconds_to_first_mask(subject.task)])
                if subject.bundle is not None and (subject.bundle.root / CACHE).is_dir():
                    seconds = _seconds_to_first_mask(_without_cache(subject.task))
                    deleted.setdefault(index, []).append([seconds])
            except WorkerFailed as error:
                subject.stop(error, folder)
    for index, rounds in filled.items():
        group[index].entry.cold_start = summarise(rounds)
    for index, rounds in deleted.items():
        group[index].entry.cold_start_uncached = summarise(rounds)


def _without_cache(task: Task) -> Task:
    """Return the task with a copy of its bundle that holds no cache; the user's keeps its own."""
    copy = Path(task.scratch) / "uncached.uino"
    if copy.exists():
        shutil.rmtree(copy / CACHE, ignore_errors=True)
    else:
        shutil.copytree(task.bundle or "", copy, ignore=shutil.ignore_patterns(".*"))
    return msgspec.structs.replace(task, bundle=str(copy))


def _seconds_to_first_mask(task: Task) -> float:
    begun = time.perf_counter()
    with WorkerProcess(task) as worker:
        worker.ask("first")
        return time.perf_counter() - begun


def _profiles(subjects: Sequence[_Subject], folder: Path, traces: Path | None) -> list[Profile]:
    """Profile every backend that ONNX Runtime runs, each in a fresh process."""
    found = []
    for subject in subjects:
        if not subject.alive or not subject.task.runner.startswith("onnxruntime"):
            continue
        try:
            with WorkerProcess(subject.task) as worker:
                layers = worker.ask("profile")["layers"]
        except WorkerFailed as error:
            subject.stop(error, folder)
            continue
        entry = subject.entry
        found.append(
            Profile(
                name=entry.name,
                image_size=entry.image_size,
                threads=entry.threads,
                layers=msgspec.convert(layers, list[Layer]),
            )
        )
        if traces is not None:
            traces.mkdir(parents=True, exist_ok=True)
            trace = Path(subject.task.scratch) / "trace.json"
            (traces / f"{Path(subject.task.scratch).name}.json").write_bytes(trace.read_bytes())
    return found


def _finish(subject: _Subject, plan: Plan, reference: Outputs | None) -> None:
    """Turn samples into timings; a runner that failed keeps none of them."""
    entry = subject.entry
    if not subject.alive:
        entry.memory = entry.cold_start = entry.cold_start_uncached = None
        return
    outputs = read_outputs(Path(subject.task.scratch) / OUTPUTS)
    for case in plan.cases:
        rounds = subject.samples.get(case)
        timing: Timing | None = None if rounds is None else summarise(rounds)
        known = None if reference is None else case_accuracy(outputs, reference, case)
        entry.cases.append(
            CaseResult(
                case=case,
                timing=timing,
                queries_per_second=None if timing is None else case.batch / timing.median,
                logits_relative_l2=None if known is None else known[0],
                mask_iou=None if known is None else known[1],
                note=subject.notes.get(str(case), ""),
            )
        )
    entry.stages = {name: summarise(rounds) for name, rounds in subject.stages.items()}
    if subject.joules:
        entry.joules = sum(subject.joules) / len(subject.joules)


def _record(
    plan: Plan,
    prepared: work.Work,
    others: OthersCpu,
    subjects: Sequence[_Subject],
    profiles: list[Profile],
) -> Record:
    manifest, config = plan.bundles[0].manifest, plan.bundles[0].config
    now = datetime.datetime.now(datetime.timezone.utc)
    return Record(
        created=now.isoformat(timespec="seconds"),
        commit=machine.commit(),
        versions=machine.versions(),
        method=Method(
            cases=list(plan.cases),
            threads=list(plan.threads),
            rounds=plan.rounds,
            warmup=plan.warmup,
            seconds=None if plan.iterations else plan.seconds,
            iterations=plan.iterations,
            cold_starts=plan.cold_starts,
            images=prepared.images,
            episodes=prepared.episodes,
        ),
        machine=machine.describe_machine(),
        model=Model(
            preset=config.preset,
            variant=config.variant,
            fingerprints=sorted({bundle.manifest.fingerprint for bundle in plan.bundles}),
            untrained=list(manifest.provenance.untrained),
        ),
        others_cpu=others.share,
        entries=[subject.entry for subject in subjects],
        profiles=profiles,
    )


def _without_paths(text: str, folder: Path, bundle: Bundle | None) -> str:
    """Shorten a message to one line, and every path in it to its last name."""
    words = " ".join(text.split()).split(" ")
    known = [str(folder), *([] if bundle is None else [str(bundle.root.resolve())])]
    short = [
        Path(word).name if any(path in word for path in known) or word.count("/") > 1 else word
        for word in words
    ]
    return " ".join(short)[:500]
