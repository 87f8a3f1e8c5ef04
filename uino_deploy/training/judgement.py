"""The judgement of a trained model beside simple methods, on images that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uino_deploy.evaluation.baselines import BASELINES, baseline_masks
from uino_deploy.evaluation.episodes import Run, run_methods
from uino_deploy.evaluation.report import compare, run_document
from uino_deploy.evaluation.segmenters import Shots, model_segmenter
from uino_deploy.images import UInt8
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.reporting import Reporter
from uino_deploy.training.validation import Held

TRAINED, BEFORE = "after training", "before training"


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a training reached on images or classes that it did not learn from.

    The state that a validation chose is the luckiest of many on its episodes, so a fair judgement
    is on others.

    Attributes:
        runs: the counted pixels of every method by its name: the simple ones, the model before
            training, and after.
        document: the figures as plain values: mIoU in per cent with a 95 % interval, and the
            differences from the other methods.
    """

    runs: dict[str, Run]
    document: dict[str, Any]

    @property
    def best_baseline(self) -> dict[str, Any]:
        """The figures of the simple method with the highest mIoU."""
        beside: dict[str, dict[str, Any]] = self.document["baselines"]
        return max(beside.values(), key=lambda each: float(each["miou"]))

    @property
    def beats_baselines(self) -> bool:
        """Whether the model is better than each simple method, chance aside.

        The 95 % interval of the difference from each lies above zero.
        """
        beside = self.document["baselines"].values()
        return bool(beside) and all(each["difference_interval"][0] > 0 for each in beside)

    @property
    def sentence(self) -> str:
        """The model and the best simple method in a line, for people."""
        best = self.best_baseline
        low, high = best["difference_interval"]
        return (
            f"mIoU {self.document['miou']:.1f} against {best['miou']:.1f} by "
            f"{best['model']}: {best['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        )


def judge(before: UinoFSS, after: UinoFSS, held: Held, reporter: Reporter) -> Judgement:
    """Run the model before and after training, and the simple methods, on the held-out episodes.

    Pixels are counted at the images' own size, as `uino-deploy evaluate` counts them.

    Args:
        before: the model that the training started from, in evaluation mode.
        after: the trained model, likewise.
        held: the episodes.
        reporter: shows the progress.
    """
    first, last = model_segmenter(before), model_segmenter(after)

    def masks(shots: Shots, query: UInt8) -> dict[str, UInt8]:
        answer = last.answer(shots, query)
        simple = baseline_masks(shots, query, answer.tokens)
        return {**simple, BEFORE: first(shots, query), TRAINED: answer.mask}

    with reporter.progress("judging", len(held.episodes)) as done:
        runs = run_methods(masks, held.dataset, held.episodes, done)
    trained = runs[TRAINED]
    figures = run_document(trained)
    figures.pop("seconds")
    document = {
        **figures,
        "held_out": held.words,
        "before": compare(trained, runs[BEFORE]),
        "baselines": {name: compare(trained, runs[name]) for name in BASELINES},
    }
    return Judgement(runs, document)


def advice(shots: int, augment: bool, untrained: Sequence[str]) -> list[str]:
    """Return what to try where a model does not beat the simple methods, the likeliest first.

    Args:
        shots: support images per episode of the training.
        augment: whether it cut and recoloured images.
        untrained: the model's parts that held random weights at its start and did not learn.
    """
    tried = []
    if untrained:
        tried.append(
            f"the {' and the '.join(untrained)} hold random weights: give --encoder-checkpoint and "
            "--sam-checkpoint, and distil the adapter first (uino-deploy distill)"
        )
    tried.append(
        "start from a model that was trained on many classes, with a larger encoder than tiny's"
    )
    if not augment:
        tried.append("train with --augment, which cuts and recolours the images")
    if shots < 5:
        tried.append("mark more images at enrolment: train and evaluate with --shots 5")
    return [
        *tried,
        "look at the worst pictures: a wrong or a coarse mask teaches the wrong thing",
        "add photographs, in other places and in other light, or other classes beside this one",
    ]
