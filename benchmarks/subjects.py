"""The entries under measurement: a task for each backend and peer, and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uino_deploy.benchmarks.models import piece_precisions
from uino_deploy.benchmarks.plan import Plan
from uino_deploy.benchmarks.processes import WorkerFailed
from uino_deploy.benchmarks.record import Case, Entry
from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.benchmarks.runners.table import PEERS
from uino_deploy.bundle import Bundle


@dataclass
class Subject:
    """An entry under measurement: its task, its bundle, and the samples taken so far."""

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
        """Whether it has not failed so far."""
        return self.entry.status == "passed"

    def stop(self, error: WorkerFailed, folder: Path) -> None:
        """Record that it failed, or cannot run on this machine, without any path in the reason."""
        self.entry.status = "refused" if error.refused else "failed"
        self.entry.reason = _without_paths(error.reason, folder, self.bundle)


def subjects_of(plan: Plan, folder: Path) -> list[Subject]:
    """Return every backend on every bundle, and every peer, at every thread count."""
    subjects = []
    for threads in plan.threads:
        for bundle in plan.bundles:
            for backend in plan.backends:
                subjects.append(_backend(folder, bundle, backend, threads))
        for size in sorted({bundle.config.image_size for bundle in plan.bundles}):
            for peer in plan.peers:
                subjects.append(_peer(folder, peer, size, threads))
    return subjects


def _backend(folder: Path, bundle: Bundle, backend: str, threads: int) -> Subject:
    precisions = piece_precisions(bundle)
    precision, size = "+".join(precisions), bundle.config.image_size
    name = f"{backend.replace(':', '-').replace('/', '-')}-{precision}-{size}-{threads}"
    task = task_of(folder, name, backend, precision, threads, size, bundle)
    entry = _entry(f"{backend.replace('/', ' ')} {precision}", task, peer=False)
    return Subject(task, entry, precisions, bundle)


def _peer(folder: Path, peer: str, size: int, threads: int) -> Subject:
    about = PEERS[peer]
    task = task_of(folder, f"{peer}-{size}-{threads}", peer, about.precision, threads, size)
    return Subject(task, _entry(about.title, task, peer=True), [about.precision], None)


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


def task_of(
    folder: Path,
    name: str,
    runner: str,
    precision: str,
    threads: int,
    size: int,
    bundle: Bundle | None = None,
) -> Task:
    """Create a task with its own scratch folder inside the work's."""
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
        own=bundle is not None and bundle.require_signature is False,
        model=str(checkpoint_path(folder, size)),
    )


def checkpoint_path(folder: Path, size: int) -> Path:
    """Return the path of the PyTorch model of an image size."""
    return folder / f"model-{size}.safetensors"


def groups_of(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Return the runners that take turns with each other: same thread count and image size."""
    groups: dict[tuple[int, int], list[Subject]] = {}
    for subject in subjects:
        if subject.alive:
            key = subject.task.threads, subject.task.image_size
            groups.setdefault(key, []).append(subject)
    return list(groups.values())


def _without_paths(text: str, folder: Path, bundle: Bundle | None) -> str:
    """Shorten a message to one line, and every path in it to its last component."""
    words = " ".join(text.split()).split(" ")
    known = [str(folder), *([] if bundle is None else [str(bundle.root.resolve())])]
    short = [
        Path(word).name if any(path in word for path in known) or word.count("/") > 1 else word
        for word in words
    ]
    return " ".join(short)[:500]
