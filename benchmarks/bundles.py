"""`benchmark_bundles`: the record of a benchmark and its files, as `uino-deploy benchmark` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from uino_deploy.benchmarks.harness import Log, run_benchmark
from uino_deploy.benchmarks.latency_csv import append_rows, check_table
from uino_deploy.benchmarks.models import in_precisions, saver
from uino_deploy.benchmarks.page import RECORD, TRACES, write_outputs
from uino_deploy.benchmarks.plan import Plan, with_portable
from uino_deploy.benchmarks.record import MAIN, Case, Record
from uino_deploy.benchmarks.work import find_photographs
from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable, require
from uino_deploy.errors import InputError
from uino_deploy.export.checkpoints import Origin
from uino_deploy.files import refuse_existing
from uino_deploy.progress import Progress, silent
from uino_deploy.workspace import work_folder

DEFAULT_EPISODES = 200


def benchmark_bundles(
    bundles: Sequence[Path],
    *,
    backends: Sequence[str] = ("onnxruntime",),
    portable: bool = False,
    precisions: Sequence[str] = (),
    peers: Sequence[str] = (),
    origin: Origin | None = None,
    classes: Sequence[int] = (),
    shots: Sequence[int] = (),
    batch: Sequence[int] = (),
    threads: Sequence[int] = (),
    images: Path | None = None,
    episodes: int | None = None,
    rounds: int = 5,
    warmup: int = 1,
    seconds: float = 2.0,
    iterations: int | None = None,
    cold_starts: int = 3,
    profile: bool = False,
    output: Path | None = None,
    append: Path | None = None,
    force: bool = False,
    log: Log = lambda _line: None,
    progress: Progress = silent,
) -> Record:
    """Time bundles on backends, beside other ways to run the model, each with its accuracy.

    Args:
        bundles: folders of bundles of one model.
        backends: such as "onnxruntime" or "onnxruntime:cuda".
        portable: also measure each backend of a processor without the native operators.
        precisions: such as "bf16"; missing ones are exported from `origin`.
        peers: names of `runners.table.PEERS`; they need `origin`.
        origin: the checkpoints that the bundles were exported from. If none is given, the
            package's own if it matches; else accuracy is measured on each bundle's stored example.
        classes: numbers of classes to time besides the main case of one.
        shots: numbers of shots, likewise.
        batch: numbers of queries at once, likewise.
        threads: numbers of CPU threads, measured separately; all of the machine's if empty.
        images: a folder of photographs; those of installed packages if None.
        episodes: held-out episodes for the mIoU; if None, 200 for a trained model with `origin`.
        rounds: turns per runner.
        warmup: untimed queries per turn.
        seconds: length of a turn.
        iterations: queries per turn, instead of `seconds`.
        cold_starts: fresh processes per runner.
        profile: also profile every bundle, layer by layer.
        output: receives the record, its page and the traces; nothing is written if None.
        append: a folder whose latency.csv receives the rows.
        force: replace an earlier benchmark in `output`.
        log: called with a line for each phase.
        progress: opens a progress display from a description and a number of steps.

    Returns:
        The record; its `failures` name the entries over their error budget.

    Raises:
        InputError: a backend or peer is unknown, the bundles are of several models, or a
            checkpoint is missing.
        BundleError: a bundle is damaged.
        OutputExists: `output` exists and `force` is not given.
        CheckFailed: the reference could not be computed, or is another model.
        DependencyError: no entry can run on this machine.
    """
    if output is not None:
        require("pages", "jinja2", "matplotlib")
        refuse_existing(output, force, RECORD)
    if append is not None:
        check_table(append)
    find_photographs(images)
    opened = [Bundle.open(path) for path in bundles]
    known = (origin or Origin()).or_bundled(opened[0])
    cases = [MAIN, *(Case(classes=n) for n in classes), *(Case(shots=n) for n in shots)]
    cases += [Case(batch=n) for n in batch]
    with work_folder(None, "uino-bundles") as further:
        plan = Plan(
            bundles=in_precisions(opened, precisions, known, further, log),
            backends=with_portable(backends) if portable else list(dict.fromkeys(backends)),
            peers=list(dict.fromkeys(peers)),
            threads=list(dict.fromkeys(threads)) or [os.cpu_count() or 1],
            cases=list(dict.fromkeys(cases)),
            rounds=rounds,
            warmup=warmup,
            seconds=seconds,
            iterations=iterations,
            cold_starts=cold_starts,
            episodes=_episodes(episodes, opened[0], known.known),
            images=images,
            model=saver(known, opened[0]),
            profile=profile,
        )
        traces = further / TRACES
        record = run_benchmark(plan, log, progress, traces)
        if output is not None:
            write_outputs(output, record, traces, force)
    if append is not None:
        append_rows(append, record)
    return record


def _episodes(asked: int | None, bundle: Bundle, reference: bool) -> int:
    """Return the number of episodes to segment: none with random weights."""
    if asked and not reference:
        raise InputError("--episodes needs the model to compare with: give --checkpoint")
    if asked is not None:
        return asked
    trained = not bundle.manifest.provenance.untrained
    return DEFAULT_EPISODES if reference and trained and is_importable("matplotlib") else 0
