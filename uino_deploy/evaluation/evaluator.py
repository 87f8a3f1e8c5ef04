"""The evaluation of a checkpoint or a bundle on a data set, as `uino-deploy evaluate` does it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from uino_deploy.bundle import Bundle
from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.episode_list import draw_list, fingerprint, read_list, write_list
from uino_deploy.data.open import DatasetName, open_dataset
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.evaluation.baselines import MODEL, with_baselines
from uino_deploy.evaluation.counting import COUNTED_ON, counting_document, measure_counting
from uino_deploy.evaluation.episodes import EVALUATION_SEED, Run, run_methods
from uino_deploy.evaluation.published import FOLDS
from uino_deploy.evaluation.report import Report, check_episodes, make_report
from uino_deploy.evaluation.results import read_baselines, read_runs, write_results
from uino_deploy.evaluation.segmenters import Answer, Load, Segmenter, Shots, open_segmenter
from uino_deploy.files import refuse_existing, refuse_input
from uino_deploy.images import UInt8
from uino_deploy.progress import Progress, silent
from uino_deploy.runtime import Predictor


def evaluate(
    source: str | Path,
    dataset: DatasetName,
    *,
    data: Path | None = None,
    fold: int | Literal["all"] | None = None,
    shots: int = 1,
    episodes: int = 1000,
    seed: int = EVALUATION_SEED,
    absent: float = 0.0,
    instances: bool = False,
    episode_list: Path | None = None,
    write_episodes: Path | None = None,
    label: int | None = None,
    bits: int | None = None,
    against: str | Path | None = None,
    max_miou_drop: float | None = None,
    output: Path | None = None,
    force: bool = False,
    load: Load = Predictor.load,
    load_against: Load = Predictor.load,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> Report:
    """Measure mIoU and FB-IoU on episodes of held-out classes, or of a folder's held-out images.

    Intersections and unions are summed over the episodes of a class at each image's own size;
    pixels marked 255 are ignored. The same arguments give the same episodes. The simple methods of
    `evaluation.baselines` are run beside the model, on the same episodes.

    Args:
        source: a checkpoint (a file), a bundle (a folder), or the results (.json) of an earlier
            evaluation on the same episodes. "{fold}" in it stands for the fold.
        dataset: one of `data.open.DATASETS`.
        data: the data set's folder; None for those that come with the package.
        fold: the held-out fold; "all" for every fold of pascal or coco.
        shots: support images per episode.
        episodes: the number of episodes to draw for each fold.
        seed: the seed of the episodes.
        absent: the share of episodes whose query shows other classes, but not the episode's: they
            tell how well present and absent are told apart. What is marked there counts as wrong.
        instances: also count the copies in as many drawn scenes as `episodes`; for
            things-unseen-hand.
        episode_list: a file to read the episodes from, in place of `shots`, `episodes`, `seed`,
            `absent`.
        write_episodes: a file to write the episodes to, as JSON lines; "{fold}" as in `source`.
        label: the object's value in a folder's masks of labels; None for all but 0.
        bits: real depth of a folder's grey images of more than 8 bits; None to find it.
        against: a model or results to compare with on the same episodes; see `source`.
        max_miou_drop: how far the mIoU may lie below that of `against`, in points; if it lies
            lower, the report has failures.
        output: a file to write the results to, as JSON.
        force: replace the files that exist.
        load: opens `source` if it is a bundle; the default is ONNX Runtime on the CPU.
        load_against: opens `against` likewise.
        progress: reports the progress of the evaluation.
        warn: receives a warning about classes without an image.

    Returns:
        The report. A failure is in `report.failures`; it is not raised.

    Raises:
        InputError: the arguments contradict each other, the data set is incomplete, or a model,
            results file or episode list is missing, damaged or of other episodes.
        OutputExists: a file to write exists and `force` is not given.
        DependencyError: a package that runs a model or reads the data is not installed.
    """
    _check_limit(max_miou_drop, against)
    if fold == "all" and episode_list is not None:
        raise InputError("an episode list belongs to one fold", "give --fold NUMBER")
    if instances:
        _check_counting(source, dataset)
    folds = _folds(dataset, fold)
    sources = [source] if against is None else [source, against]
    _check_outputs(folds, output, write_episodes, [*sources, episode_list], force)
    for number in folds:
        for each in sources:
            _check_source(_of_fold(each, number), number)
    runs: dict[int | None, Run] = {}
    others: dict[int | None, Run] = {}
    baselines: dict[str, dict[int | None, Run]] = {}
    for number in folds:
        opened = open_dataset(dataset, data, number, label=label, bits=bits)
        if episode_list is None:
            drawn_with: int | None = seed
            count = _at_most(opened, episodes, shots, warn)
            listed = draw_list(opened, count, shots, seed, absent)
            _warn_of_absent(opened, warn)
        else:
            header, listed = read_list(episode_list, opened)
            drawn_with, shots = header.seed, header.shots
        if write_episodes is not None:
            path = _of_fold(write_episodes, number)
            write_list(path, opened, number, shots, drawn_with, listed, force)
        # Both are opened before either runs: the second may be damaged, or lack its backend.
        first = _open(source, number, load, opened, listed)
        second = None if against is None else _open(against, number, load_against, opened, listed)
        runs[number], simple = first(progress)
        for name, run in simple.items():
            baselines.setdefault(name, {})[number] = run
        if second is not None:
            others[number], _ = second(progress)
    known_seed = seed if episode_list is None else None
    report = make_report(dataset, shots, known_seed, runs, others, max_miou_drop, baselines)
    if instances:
        report.document["instances"] = _count(source, load, episodes, seed, progress)
    if output is not None:
        write_results(output, report.document, runs, force, baselines)
    return report


def _check_limit(max_miou_drop: float | None, against: str | Path | None) -> None:
    if max_miou_drop is None:
        return
    if against is None:
        raise InputError("a limit on the drop in mIoU needs a model to compare with",
                         "give --against with --max-miou-drop")  # fmt: skip
    if not 0 <= max_miou_drop < math.inf:
        raise InputError(f"the limit on the drop in mIoU is {max_miou_drop:g}",
                         "give a finite number of points, 0 or more")  # fmt: skip


def _check_counting(source: str | Path, dataset: DatasetName) -> None:
    """Refuse to count objects where they cannot be counted, before the work."""
    require("instances", "skimage")
    if dataset != COUNTED_ON:
        raise InputError(f"objects are counted in scenes of things, not on {dataset}",
                         f"give --dataset {COUNTED_ON} with --instances")  # fmt: skip
    if Path(source).suffix == ".json":
        raise InputError(f"{source} holds results, and objects are counted by a model",
                         "give a checkpoint or a bundle with --instances")  # fmt: skip


def _folds(dataset: DatasetName, fold: int | Literal["all"] | None) -> list[int | None]:
    if fold != "all":
        return [fold]
    if not FOLDS.get(dataset):
        raise InputError(f"--fold all is for pascal and coco, not {dataset}")
    return list(range(FOLDS[dataset]))


def _at_most(dataset: Dataset, asked: int, shots: int, warn: Callable[[str], None]) -> int:
    """Return how many episodes to draw: no episode of a small data set counts twice."""
    most = dataset.most_episodes(shots)
    if most is None or asked <= most:
        return asked
    warn(f"{dataset.name} has only {most} different episodes with {shots} shots: these are run")
    return most


def _warn_of_absent(dataset: Dataset, warn: Callable[[str], None]) -> None:
    absent = sorted(set(range(len(dataset.classes))) - set(dataset.shown_labels()))
    if absent:
        names = ", ".join(dataset.classes[label] for label in absent)
        warn(f"no image of {names}: left out")


def _check_outputs(
    folds: Sequence[int | None],
    output: Path | None,
    episodes: Path | None,
    inputs: Sequence[str | Path | None],
    force: bool,
) -> None:
    """Refuse files to write that exist, are inputs, or are one another, before the work."""
    targets = [output] if output is not None else []
    if episodes is not None:
        targets += [_of_fold(episodes, number) for number in folds]
    if len({os.path.abspath(each) for each in targets}) < len(targets):
        raise InputError("two outputs are the same file", 'write "{fold}" in the episodes\' path')
    read = [_of_fold(each, number) for each in inputs if each is not None for number in folds]
    for target in targets:
        refuse_existing(target, force)
        refuse_input(target, read)


def _check_source(path: Path, fold: int | None) -> None:
    """Refuse a model or results that cannot be read, before the first episode of any fold.

    A checkpoint is looked for; that it is whole is seen when it is opened.
    """
    if path.suffix == ".json":
        _run_of(path, fold)
    elif path.is_dir():
        Bundle.open(path, verify=False)
    elif not path.exists():
        raise InputError(f"{path} does not exist", "give a checkpoint, a bundle or a results file")


def _run_of(path: Path, fold: int | None) -> Run:
    runs = read_runs(path)
    if fold not in runs:
        raise InputError(f"{path} has no results for fold {fold}")
    return runs[fold]


def _open(
    source: str | Path,
    fold: int | None,
    load: Load,
    dataset: Dataset,
    episodes: list[ListedEpisode],
) -> Callable[[Progress], tuple[Run, dict[str, Run]]]:
    """Open a checkpoint or a bundle, or read results; return what gives its run and baselines."""
    path = _of_fold(source, fold)
    if path.suffix == ".json":
        run = _run_of(path, fold)
        check_episodes(run, fingerprint(dataset, episodes))
        simple = {name: runs[fold] for name, runs in read_baselines(path).items() if fold in runs}
        return lambda _progress: (run, simple)
    model, presence = open_segmenter(path, load), list[tuple[float, float]]()

    def noting(shots: Shots, query: UInt8) -> Answer:
        answer = model.answer(shots, query)
        presence.append((answer.resemblance, answer.iou))
        return answer

    methods = with_baselines(Segmenter(noting))

    def run_all(progress: Progress) -> tuple[Run, dict[str, Run]]:
        what = path.name if fold is None else f"{path.name}, fold {fold}"
        with progress(what, len(episodes)) as done:
            made = run_methods(methods, dataset, episodes, done)
        run = replace(made.pop(MODEL), name=path.name, presence=tuple(presence))
        return run, made

    return run_all


def _count(
    source: str | Path, load: Load, scenes: int, seed: int, progress: Progress
) -> dict[str, Any]:
    with progress("counting", scenes) as done:
        rows = measure_counting(open_segmenter(Path(source), load), scenes, seed, done)
    return counting_document(rows, scenes)


def _of_fold(path: str | Path, fold: int | None) -> Path:
    """Return the path with "{fold}" replaced."""
    return Path(str(path).replace("{fold}", str(fold)))
