"""The report of an evaluation: a document for programs; tables and sentences for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.evaluation.intervals import SAMPLED, Interval, bootstrap, bootstrap_difference
from uino_deploy.evaluation.presence import area_under_roc, bootstrap_area
from uino_deploy.evaluation.published import paper_table
from uino_deploy.evaluation.results import Runs

Table = tuple[Sequence[str], Sequence[Sequence[object]]]
"""Columns and rows."""

_MOST_CLASSES = 30  # with more classes, a table shows only the lowest
_LOWEST = 10


@dataclass(frozen=True)
class Report:
    """The results of `evaluate`.

    Attributes:
        document: the figures as plain values, as `uino-deploy evaluate --json` prints them.
        runs: the model's counted pixels, by fold.
        others: the pixels of the model that it is compared with, by fold.
        baselines: those of each simple method, by its name and fold.
    """

    document: dict[str, Any]
    runs: Runs
    others: Runs
    baselines: Mapping[str, Runs]

    @property
    def failures(self) -> list[str]:
        """The broken limits, a line each; empty if `max_miou_drop` holds or is not set."""
        failures: list[str] = self.document["failures"]
        return failures

    @property
    def paper_table(self) -> Table:
        """The figures laid out like the paper's tables, beside the paper's own."""
        methods = {
            name: {fold: run.evaluation for fold, run in runs.items()}
            for name, runs in self.baselines.items()
        }
        for runs, suffix in ((self.others, " (against)"), (self.runs, "")):
            if runs:
                name = next(iter(runs.values())).name + suffix
                # A checkpoint may be named like a simple method.
                name += " (model)" if name in methods else ""
                methods[name] = {fold: run.evaluation for fold, run in runs.items()}
        return paper_table(self.document["dataset"], self.document["shots"], methods)

    @property
    def sentences(self) -> list[str]:
        """The figures of every fold with their intervals, and the differences from others'."""
        parts = self.document.get("folds", [self.document])
        sentences = [sentence for part in parts for sentence in _sentences(part)]
        return [*sentences, *_beside_baselines(self.document)]

    @property
    def counting_table(self) -> Table | None:
        """How well copies are counted and parted; None if it was not measured."""
        if "instances" not in self.document:
            return None
        rows = self.document["instances"]["rows"]
        columns = ["masks", "parted by", "count error", "count right", "AP50"]
        return columns, [
            [row["masks"], row["parted"], f"{row['count_error']:.2f}", f"{row['exact']:.0%}",
             f"{100 * row['ap50']:.1f}"]
            for row in rows
        ]  # fmt: skip

    @property
    def class_table(self) -> Table | None:
        """The IoU of each class, or of the lowest if there are many; None for several folds."""
        if "folds" in self.document:
            return None
        ranked = sorted(self.document["per_class"].items(), key=lambda item: item[1]["iou"])
        few = len(ranked) <= _MOST_CLASSES
        shown = ranked if few else ranked[:_LOWEST]
        return (
            ["class" if few else "the lowest classes", "IoU", "episodes"],
            [[name, f"{each['iou']:.1f}", each["episodes"]] for name, each in shown],
        )


def make_report(
    dataset: str,
    shots: int,
    seed: int | None,
    runs: Runs,
    others: Runs,
    max_miou_drop: float | None = None,
    baselines: Mapping[str, Runs] | None = None,
) -> Report:
    """Return the report of one run, or of every fold's run and their means.

    Args:
        dataset: by the command line's name.
        shots: support images per episode.
        seed: the seed of the episodes; None if a file lists them.
        runs: the model's.
        others: those of the model to compare with, if any.
        max_miou_drop: how far the mIoU may lie below the other model's, in points.
        baselines: those of each simple method on the same episodes, by its name.

    Raises:
        InputError: the runs are on different episodes.
    """
    simple = baselines or {}
    parts = []
    for fold, run in runs.items():
        beside = {name: compare(run, each[fold]) for name, each in simple.items() if fold in each}
        part = {"fold": fold, **run_document(run), "baselines": beside}
        if fold in others:
            part["against"] = compare(run, others[fold])
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else _means(parts)
    failures = []
    if max_miou_drop is not None:
        drop = -whole["against"]["difference"]
        if any(len(run.absent) == len(run.labels) for run in runs.values()):
            failures = ["no query shows its class: an mIoU of nothing cannot drop"]
        elif not drop <= max_miou_drop:
            other = whole["against"]["model"]
            failures = [f"mIoU is {drop:.2f} below {other}'s, over {max_miou_drop:g}"]
    document = {
        "dataset": dataset,
        "shots": shots,
        "seed": seed,
        **whole,
        "max_miou_drop": max_miou_drop,
        "failures": failures,
        "passed": None if max_miou_drop is None else not failures,
    }
    return Report(document, runs, others, simple)


def run_document(run: Run) -> dict[str, Any]:
    """Return a run's figures as plain values: per cent, and 95 % intervals."""
    score, intervals = run.score, bootstrap(len(run.classes), run.labels, run.counts)
    shown = np.bincount(run.labels, minlength=len(run.classes)).tolist()
    return {
        "model": run.name,
        "miou": round(score.miou, 3),
        "miou_interval": _rounded(intervals.miou),
        "fb_iou": round(score.fb_iou, 3),
        "fb_iou_interval": _rounded(intervals.fb_iou),
        "per_class": {
            run.classes[label]: {"iou": round(iou, 3), "episodes": shown[label]}
            for label, iou in score.class_ious.items()
        },
        "episodes": len(run.labels),
        "absent": {
            "episodes": len(run.absent),
            "left_empty": round(run.left_empty, 1),
            **_areas(run),
        },
        "episodes_sha256": run.episodes_sha256,
        "images_sha256": run.images_sha256,
        "seconds": round(run.seconds, 2),
    }


def _areas(run: Run) -> dict[str, Any]:
    """Return how well present and absent are told apart; nothing where all or none are absent."""
    if not run.presence or not 0 < len(run.absent) < len(run.labels):
        return {}
    scores = np.array(run.presence)
    lacking = np.zeros(len(scores), np.bool_)
    lacking[list(run.absent)] = True
    present, absent = scores[~lacking], scores[lacking]
    return {
        "presence_auc": round(area_under_roc(present[:, 0], absent[:, 0]), 4),
        "presence_auc_interval": _rounded(bootstrap_area(present[:, 0], absent[:, 0])),
        "predicted_iou_auc": round(area_under_roc(present[:, 1], absent[:, 1]), 4),
    }


def check_episodes(run: Run, episodes_sha256: str) -> None:
    """Refuse the results of a run on other episodes.

    Raises:
        InputError: they are of other episodes.
    """
    if run.episodes_sha256 != episodes_sha256:
        raise InputError(
            f"{run.name} was not run on the same episodes",
            "give both the same --episode-list, or the same data set, seed, shots and count",
        )


def compare(run: Run, against: Run) -> dict[str, Any]:
    """Return the difference of two runs' figures (`run` - `against`) as plain values.

    Raises:
        InputError: the runs are on different episodes, or on different pictures.
    """
    check_episodes(against, run.episodes_sha256)
    if not against.images_sha256 and run.images_sha256:
        raise InputError(
            f"the results of {against.name} do not say which pictures they are of",
            "evaluate it again",
        )
    if run.images_sha256 != against.images_sha256:
        raise InputError(
            f"{against.name} was run on other pictures of the same names than {run.name}",
            "give both the same data",
        )
    if run.labels != against.labels or run.classes != against.classes:
        raise InputError(
            f"the results of {against.name} do not hold the episodes that they name",
            "evaluate it again",
        )
    intervals = bootstrap_difference(len(run.classes), run.labels, run.counts, against.counts)
    return {
        "model": against.name,
        "miou": round(against.score.miou, 3),
        "fb_iou": round(against.score.fb_iou, 3),
        "left_empty": round(against.left_empty, 1),
        "difference": round(run.score.miou - against.score.miou, 3),
        "difference_interval": _rounded(intervals.miou),
        "fb_iou_difference": round(run.score.fb_iou - against.score.fb_iou, 3),
        "fb_iou_difference_interval": _rounded(intervals.fb_iou),
    }


def _means(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over folds, as in the paper's tables, and every fold's results."""
    whole: dict[str, Any] = {
        "model": parts[0]["model"],
        "miou": round(mean(part["miou"] for part in parts), 3),
        "fb_iou": round(mean(part["fb_iou"] for part in parts), 3),
        "episodes": sum(part["episodes"] for part in parts),
        "folds": parts,
    }
    if "against" in parts[0]:
        whole["against"] = _mean_comparison([part["against"] for part in parts])
    whole["baselines"] = {
        name: _mean_comparison([part["baselines"][name] for part in parts])
        for name in parts[0]["baselines"]
        if all(name in part["baselines"] for part in parts)
    }
    return whole


def _mean_comparison(compared: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": compared[0]["model"],
        **{
            key: round(mean(each[key] for each in compared), 3)
            for key in ("miou", "fb_iou", "difference", "fb_iou_difference")
        },
    }


def _sentences(part: Mapping[str, Any]) -> list[str]:
    """Describe one fold's figures, and their difference from the other model's."""
    fold = "" if part["fold"] is None else f"fold {part['fold']}: "
    classes = len(part["per_class"])
    few = _too_few(part)
    interval = _shown(part["miou_interval"], ".2f", few)
    sentences = [
        f"{fold}mIoU {part['miou']:.2f} {interval}, FB-IoU {part['fb_iou']:.2f}, "
        f"{part['episodes']} episodes of {classes} class{'es' if classes > 1 else ''}"
    ]
    if part["absent"]["episodes"]:
        sentences.append(
            f"{fold}nothing is marked in {part['absent']['left_empty']:.1f} % of the "
            f"{part['absent']['episodes']} queries that do not show the class"
        )
    if "presence_auc" in part["absent"]:
        low, high = part["absent"]["presence_auc_interval"]
        sentences.append(
            f"{fold}presence: area under the ROC curve {part['absent']['presence_auc']:.3f} "
            f"[{low:.3f}, {high:.3f}]; by the predicted IoU alone "
            f"{part['absent']['predicted_iou_auc']:.3f}"
        )
    if "against" in part:
        other = part["against"]
        interval = _shown(other["difference_interval"], "+.3f", few)
        sentences.append(
            f"{fold}{other['difference']:+.3f} {interval} mIoU against {other['model']} on the "
            "same episodes"
        )
    return sentences


def _beside_baselines(whole: Mapping[str, Any]) -> list[str]:
    """Say by how much the model beats the best of the simple methods, if it does."""
    if not whole["baselines"]:
        return []
    best = max(whole["baselines"].values(), key=lambda each: each["miou"])
    interval = ""
    if "difference_interval" in best:
        interval = " " + _shown(best["difference_interval"], "+.1f", _too_few(whole))
    lead = f"{best['difference']:+.1f}{interval} mIoU against {best['model']}"
    if best["difference"] > 0:
        return [f"{lead}, the best of the simple methods"]
    return [f"{lead}: the model is no better than this simple method"]


def _too_few(part: Mapping[str, Any]) -> bool:
    """Whether an interval has no width but by chance: an episode a class, of fixed classes."""
    return bool(part["episodes"] <= len(part["per_class"]) < SAMPLED)


def _shown(interval: Sequence[float], form: str, few: bool) -> str:
    """Write an interval, unless it says nothing."""
    low, high = interval
    return "[too few episodes]" if few else f"[{low:{form}}, {high:{form}}]"


def _rounded(interval: Interval) -> list[float]:
    return [round(interval.low, 3), round(interval.high, 3)]
