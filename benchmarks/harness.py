"""The benchmark run: prepares the work, checks every runner, times the accurate ones in turns.

- reference: float32 PyTorch on all the work, in its own process.
- judge: each runner in its own process: enroll, save, logits and masks of every case.
- time: the runners within their budget, each in a fresh process; every runner has a turn in every
  round, so that noise hits all alike.
- start: fresh processes again, from process start to the first mask.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from uino_deploy.benchmarks.plan import Plan
from uino_deploy.benchmarks.processes import WorkerFailed, WorkerProcess
from uino_deploy.benchmarks.record import (
    MAIN,
    CaseResult,
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
from uino_deploy.benchmarks.runners.table import REFERENCE
from uino_deploy.benchmarks.statistics import summarise
from uino_deploy.benchmarks.subjects import (
    Subject,
    checkpoint_path,
    groups_of,
    subjects_of,
    task_of,
)
from uino_deploy.benchmarks.worker import OUTPUTS
from uino_deploy.errors import CheckFailed, DependencyError
from uino_deploy.progress import Progress

Log = Callable[[str], None]

# The folder inside the bundle in which a backend keeps compiled models.
CACHE = ".cache"

# Pause between two turns, in which the previous runner's threads stop spinning.
_SETTLE = 0.05


def run_benchmark(plan: Plan, log: Log, progress: Progress, traces: Path | None = None) -> Record:
    """Measure everything that a plan names.

    Args:
        plan: what to measure.
        log: receives a line for each phase.
        progress: opens a progress display from a description and a number of steps.
        traces: a folder for the profiles' traces.

    Raises:
        InputError: bundles of several models, or an unreadable image.
        CheckFailed: the reference could not be computed.
        DependencyError: no photograph is available, or no entry can run on this machine.
    """
    plan.check()
    with tempfile.TemporaryDirectory(prefix="uino-benchmark-") as name:
        folder = Path(name)
        prepared = work.prepare(folder, plan.images, plan.cases, plan.episodes)
        references = _references(plan, folder, log)
        subjects = subjects_of(plan, folder)
        for subject in subjects:
            log(f"checking {subject.entry.name},  {subject.task.threads} threads")
            _judge(subject, references.get(subject.task.image_size), plan, folder)
        if all(subject.entry.status == "refused" for subject in subjects):
            raise DependencyError(f"no entry can run on this machine: {subjects[0].entry.reason}")
        others = OthersCpu()
        groups = groups_of(subjects)
        with progress("rounds", plan.rounds * len(groups)) as step:
            for group in groups:
                _time(group, plan, folder, others, step)
        if plan.cold_starts:
            log("starting cold")
            for group in groups:
                _start_cold(group, plan, folder)
        profiles = _profiles(subjects, folder, traces) if plan.profile else []
        for subject in subjects:
            _finish(subject, plan, references.get(subject.task.image_size))
        return _record(plan, prepared, others, subjects, profiles)


def _references(plan: Plan, folder: Path, log: Log) -> dict[int, Outputs]:
    """Compute float32 PyTorch's outputs for each image size; none without a model."""
    references: dict[int, Outputs] = {}
    if plan.model is None:
        return references
    for size in sorted({bundle.config.image_size for bundle in plan.bundles}):
        log(f"computing the reference at {size} px")
        plan.model(checkpoint_path(folder, size), size)
        task = task_of(folder, f"reference-{size}", REFERENCE, "fp32", max(plan.threads), size)
        try:
            with WorkerProcess(task) as worker:
                worker.ask("judge")
                worker.ask("examples")
        except WorkerFailed as error:
            raise CheckFailed(f"the reference could not be computed: {error.reason}") from error
        references[size] = read_outputs(Path(task.scratch) / OUTPUTS)
    return references


def _judge(subject: Subject, reference: Outputs | None, plan: Plan, folder: Path) -> None:
    """Compute a runner's accuracy, and fail the runner if it is over its error budget."""
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


def _time(
    group: Sequence[Subject],
    plan: Plan,
    folder: Path,
    others: OthersCpu,
    step: Callable[[], None],
) -> None:
    """Give every runner a turn in every round, in an order rotated by one each time."""
    with ExitStack() as stack:
        workers: dict[int, WorkerProcess] = {}
        for index, subject in enumerate(group):
            try:
                workers[index] = stack.enter_context(WorkerProcess(subject.task))
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


def _turn(subject: Subject, worker: WorkerProcess, plan: Plan, first: bool) -> None:
    """Let one runner run all its cases."""
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


def _start_cold(group: Sequence[Subject], plan: Plan, folder: Path) -> None:
    """Time fresh processes up to their first mask, in turns, with and without filled caches."""
    filled: dict[int, list[list[float]]] = {}
    deleted: dict[int, list[list[float]]] = {}
    for _ in range(plan.cold_starts):
        for index, subject in enumerate(group):
            if not subject.alive:
                continue
            try:
                filled.setdefault(index, []).append([_seconds_to_first_mask(subject.task)])
                if subject.bundle is not None:
                    uncached = _without_cache(subject.task)
                    seconds = _seconds_to_first_mask(uncached)
                    # Only backends that cache compiled models have left one there.
                    if (Path(uncached.bundle or "") / CACHE).is_dir():
                        deleted.setdefault(index, []).append([seconds])
            except WorkerFailed as error:
                subject.stop(error, folder)
    for index, rounds in filled.items():
        group[index].entry.cold_start = summarise(rounds)
    for index, rounds in deleted.items():
        group[index].entry.cold_start_uncached = summarise(rounds)


def _without_cache(task: Task) -> Task:
    """Return the task with a copy of its bundle, without the user's cache."""
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


def _profiles(subjects: Sequence[Subject], folder: Path, traces: Path | None) -> list[Profile]:
    """Profile every bundle on every backend, each in a fresh process."""
    profiles = []
    for subject in subjects:
        if not subject.alive or subject.bundle is None:
            continue
        try:
            with WorkerProcess(subject.task) as worker:
                layers = worker.ask("profile")["layers"]
        except WorkerFailed as error:
            subject.stop(error, folder)
            continue
        entry = subject.entry
        profiles.append(
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
    return profiles


def _finish(subject: Subject, plan: Plan, reference: Outputs | None) -> None:
    """Turn samples into timings; a failed runner keeps none."""
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
    subjects: Sequence[Subject],
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
