"""`uino-deploy evaluate`: mIoU of a checkpoint or a bundle on a data set's episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._backend import backend_options
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options
from uino_deploy.errors import InputError

if TYPE_CHECKING:
    from uino_deploy.data.dataset import Dataset, ListedEpisode
    from uino_deploy.data.open import DatasetName
    from uino_deploy.evaluation.runs import Run, Segment
    from uino_deploy.runtime import Predictor

_DATASETS = ("demo", "digits", "pascal", "coco", "fss1000", "folder")
_ALL = "all"

Load = Callable[[Path], "Predictor"]


@dataclass(frozen=True)
class _Question:
    """What is to be judged on."""

    dataset: DatasetName
    data: Path | None
    shots: int
    episodes: int
    seed: int
    listed: Path | None


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_BUNDLE")
@click.option("--dataset", type=click.Choice(_DATASETS), required=True, help="What to judge on.")
@click.option("--data", type=FILE, metavar="DIR", help="The data set's folder.")
@click.option("--fold", type=click.Choice([*map(str, range(5)), _ALL]),
              help='Of PASCAL-5i, COCO-20i or a folder; "all" with "{fold}" in the paths for a '
              "checkpoint of each fold.")  # fmt: skip
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Support images of an episode.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(min=1), default=1000, show_default=True,
              help="How many to draw, for each fold.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=2, show_default=True,
              help="Of the episodes.")  # fmt: skip
@click.option("--episode-list", "listed", type=FILE,
              help="Take the episodes from this file, not from a seed.")  # fmt: skip
@click.option("--write-episodes", type=FILE, help="Write the episodes as JSON lines.")
@click.option("--against", metavar="OTHER",
              help="Compare with this checkpoint, bundle or results file.")  # fmt: skip
@click.option("--against-backend", default="onnxruntime", show_default=True,
              help="What runs OTHER where it is a bundle.")  # fmt: skip
@click.option("--max-miou-drop", type=click.FloatRange(min=0), metavar="POINTS",
              help="Fail where the mIoU is lower than OTHER's by more.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, help="Write the results as JSON.")
@backend_options
@force_option
@output_options
def evaluate(
    source: str,
    dataset: DatasetName,
    data: Path | None,
    fold: str | None,
    shots: int,
    episodes: int,
    seed: int,
    listed: Path | None,
    write_episodes: Path | None,
    against: str | None,
    against_backend: str,
    max_miou_drop: float | None,
    path: Path | None,
    load: Load,
    force: bool,
    output: Output,
) -> None:
    """Measure mIoU and FB-IoU on episodes of classes (or images) that were held out.

    Intersections and unions are summed over a class's episodes, at the images' own size, and
    pixels marked 255 are ignored. Intervals are 95 % bootstrap intervals over episodes.

    \b
    Examples:
      uino-deploy evaluate demo.uino --dataset demo
      uino-deploy evaluate vitb14.uino --dataset pascal --data VOC2012 --fold 0 \\
          --against vitb14.safetensors --max-miou-drop 0.5 -o fold0.json
      uino-deploy evaluate 'fold{fold}.safetensors' --dataset coco --data COCO2014 --fold all
    """
    from uino_deploy.files import refuse_existing

    if max_miou_drop is not None and against is None:
        raise click.UsageError("--max-miou-drop needs --against")
    if fold == _ALL and listed is not None:
        raise click.UsageError("--episode-list is of one fold")
    for target in (path, write_episodes):
        if target is not None:
            refuse_existing(target, force)
    question = _Question(dataset, data, shots, episodes, seed, listed)
    runs: dict[int | None, Run] = {}
    others: dict[int | None, Run] = {}
    for number in _folds(dataset, fold):
        drawn = _episodes(question, number, write_episodes, force, output)
        question = replace(question, shots=len(drawn[1][0].support))
        runs[number] = _run(source, number, load, drawn, output)
        if against is not None:
            others[number] = _run(against, number, loader(against_backend), drawn, output)
    document = _document(question, runs, others, max_miou_drop)
    if path is not None:
        _write(path, document, runs, force)
    _show(document, runs, others, output)
    output.document(document)
    if max_miou_drop is not None:
        output.verdict(document["failures"])


def _folds(dataset: str, fold: str | None) -> list[int | None]:
    if fold != _ALL:
        return [None if fold is None else int(fold)]
    if dataset not in {"pascal", "coco"}:
        raise click.UsageError(f"--fold all is for pascal and coco, not {dataset}")
    return [0, 1, 2, 3]


def loader(backend: str) -> Load:
    """Return what opens a bundle on a backend."""

    def load(bundle: Path) -> Predictor:
        from uino_deploy.runtime import Predictor

        return Predictor.load(bundle, backend)

    return load


def _episodes(
    question: _Question, fold: int | None, target: Path | None, force: bool, output: Output
) -> tuple[Dataset, list[ListedEpisode]]:
    """Open the data set and draw, or read, its episodes; write them where that is asked for."""
    from uino_deploy.data.episode_list import draw_list, read_list, shown_labels, write_list
    from uino_deploy.data.open import open_dataset

    opened = open_dataset(question.dataset, question.data, fold)
    seed: int | None = question.seed
    if question.listed is not None:
        header, drawn = read_list(question.listed, opened)
        seed = header.seed
    else:
        drawn = draw_list(opened, question.episodes, question.shots, question.seed)
        absent = sorted(set(range(len(opened.classes))) - set(shown_labels(opened)))
        if absent:
            names = ", ".join(opened.classes[label] for label in absent)
            output.warn(f"no image of {names}: left out")
    if target is not None:
        target = Path(str(target).replace("{fold}", str(fold)))
        write_list(target, opened, fold, len(drawn[0].support), seed, drawn, force)
    return opened, drawn


def _run(
    source: str,
    fold: int | None,
    load: Load,
    drawn: tuple[Dataset, list[ListedEpisode]],
    output: Output,
) -> Run:
    """Run a checkpoint or a bundle on the episodes, or read what it did on them."""
    from uino_deploy.evaluation.runs import read_runs, run_episodes

    path = Path(source.replace("{fold}", str(fold)))
    if path.suffix == ".json":
        runs = read_runs(path)
        if fold not in runs:
            raise InputError(f"{path} holds no run of fold {fold}")
        return runs[fold]
    segment = segmenter_of(path, load)
    dataset, episodes = drawn
    what = path.name if fold is None else f"{path.name}, fold {fold}"
    with output.progress(what, len(episodes)) as done:
        return run_episodes(path.name, segment, dataset, episodes, done)


def segmenter_of(path: Path, load: Load) -> Segment:
    """Return a bundle (a folder) or a checkpoint (a file) as a segmenter."""
    from uino_deploy.evaluation.segmenters import bundle_segmenter, model_segmenter

    if path.is_dir():
        return bundle_segmenter(load(path))
    from uino_deploy.dependencies import require

    require("export", "torch")
    import torch

    from uino_deploy.model.checkpoint import load_checkpoint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model_segmenter(load_checkpoint(path).to(device))


def _document(
    question: _Question,
    runs: Mapping[int | None, Run],
    others: Mapping[int | None, Run],
    allowed: float | None,
) -> dict[str, Any]:
    """Return the results: of the run, or of every fold and their means."""
    from uino_deploy.evaluation.runs import compare

    parts = []
    for fold, run in runs.items():
        part = {"fold": fold, **run.document()}
        if fold in others:
            part["against"] = compare(run, others[fold])
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else _means(parts)
    failures = []
    if allowed is not None:
        drop = -whole["against"]["difference"]
        if drop > allowed:
            failures = [f"mIoU is {drop:.2f} below {whole['against']['model']}'s, over {allowed:g}"]
    return {
        "dataset": question.dataset,
        "shots": question.shots,
        "seed": None if question.listed else question.seed,
        **whole,
        "max_miou_drop": allowed,
        "failures": failures,
        "passed": None if allowed is None else not failures,
    }


def _means(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over folds, as the paper's tables have them, and every fold's results."""
    whole: dict[str, Any] = {
        "model": parts[0]["model"],
        "miou": round(mean(part["miou"] for part in parts), 3),
        "fb_iou": round(mean(part["fb_iou"] for part in parts), 3),
        "episodes": sum(part["episodes"] for part in parts),
        "folds": parts,
    }
    if "against" in parts[0]:
        compared = [part["against"] for part in parts]
        whole["against"] = {
            "model": compared[0]["model"],
            **{
                key: round(mean(each[key] for each in compared), 3)
                for key in ("miou", "fb_iou", "difference", "fb_iou_difference")
            },
        }
    return whole


def _write(
    path: Path, document: Mapping[str, Any], runs: Mapping[int | None, Run], force: bool
) -> None:
    from uino_deploy.evaluation.runs import detail
    from uino_deploy.files import atomic_file

    with atomic_file(path, force) as temporary:
        kept = {**document, **detail(runs)}
        temporary.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")


def _show(
    document: Mapping[str, Any],
    runs: Mapping[int | None, Run],
    others: Mapping[int | None, Run],
    output: Output,
) -> None:
    from uino_deploy.evaluation.table import paper_table

    rows: dict[str, dict[int | None, tuple[float, float]]] = {}
    for found in (others, runs):
        for fold, run in found.items():
            name = next(iter(found.values())).name
            name = f"{name} (against)" if found is others else name
            rows.setdefault(name, {})[fold] = (run.score.miou, run.score.fb_iou)
    output.table(*paper_table(document["dataset"], document["shots"], rows))
    output.text()
    for part in document.get("folds", [document]):
        _show_part(part, output)
    if "folds" not in document:
        _show_classes(document, output)


def _show_part(part: Mapping[str, Any], output: Output) -> None:
    fold = "" if part["fold"] is None else f"fold {part['fold']}: "
    low, high = part["miou_interval"]
    classes = len(part["per_class"])
    output.text(
        f"{fold}mIoU {part['miou']:.2f} [{low:.2f}, {high:.2f}], FB-IoU {part['fb_iou']:.2f}, "
        f"{part['episodes']} episodes of {classes} class{'es' if classes > 1 else ''}"
    )
    if "against" in part:
        other = part["against"]
        low, high = other["difference_interval"]
        output.text(
            f"{fold}{other['difference']:+.3f} [{low:+.3f}, {high:+.3f}] mIoU against "
            f"{other['model']} on the same episodes"
        )


def _show_classes(part: Mapping[str, Any], output: Output, most: int = 30) -> None:
    """Show each class's IoU; of many classes the lowest ones."""
    ranked = sorted(part["per_class"].items(), key=lambda item: item[1]["iou"])
    shown = ranked if len(ranked) <= most else ranked[:10]
    output.text()
    output.table(
        ["class" if shown is ranked else "the lowest classes", "IoU", "episodes"],
        [[name, f"{each['iou']:.1f}", each["episodes"]] for name, each in shown],
    )
