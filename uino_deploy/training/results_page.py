"""What a validated training leaves beside its checkpoint: its figures, and a page about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from uino_deploy.charts import Bar, Chart, bars, lines
from uino_deploy.dependencies import install_command, is_importable
from uino_deploy.evaluation.episodes import load_episode
from uino_deploy.evaluation.metrics import foreground_iou
from uino_deploy.evaluation.segmenters import Segmenter, model_segmenter
from uino_deploy.files import atomic_file
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.page import (
    Example,
    Gallery,
    Headline,
    Headlines,
    Picture,
    Section,
    Text,
    Verdict,
    page,
)
from uino_deploy.painting import LEGEND, SOLID, TRUTH_COLOUR, iou_fact, paint, paint_prediction
from uino_deploy.training.judgement import BEFORE, TRAINED, Judgement
from uino_deploy.training.reporting import Reporter
from uino_deploy.training.run_folder import PAGE, RESULTS, Logged, read_log
from uino_deploy.training.validation import Held

_SHOWN = 4  # typical episodes, and worst ones
_POINTS = 10  # of a curve
_MOST = 320  # pixels along a picture's side


def write_results(
    folder: Path,
    judgement: Judgement,
    held: Held,
    validation: str,
    model: UinoFSS,
    best_step: int,
    tried: Sequence[str],
    reporter: Reporter,
) -> Path | None:
    """Write a judgement into a run's folder, as JSON and as a page.

    Args:
        folder: the run's folder, with its log.
        judgement: the figures.
        held: the images and episodes that it judged.
        validation: what was held out to choose the state, for people.
        model: the trained model, in evaluation mode.
        best_step: the steps after which its state was reached.
        tried: what to try if it does not beat the simple methods.
        reporter: told if the page cannot be drawn.

    Returns:
        The page's path; None if a package that draws it is not installed.
    """
    document = {**judgement.document, "beats_baselines": judgement.beats_baselines}
    with atomic_file(folder / RESULTS, force=True) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n")
    missing = [name for name in ("jinja2", "matplotlib") if not is_importable(name)]
    if missing:
        needed = " and ".join(missing)
        reporter.log(f"no {PAGE}: it needs {needed}; {install_command('pages')}")
        return None
    text = _page(
        judgement, held, validation, model_segmenter(model), read_log(folder), best_step, tried
    )
    with atomic_file(folder / PAGE, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def _page(
    judgement: Judgement,
    held: Held,
    validation: str,
    segmenter: Segmenter,
    log: Sequence[Logged],
    best_step: int,
    tried: Sequence[str],
) -> str:
    run = judgement.runs[TRAINED]
    ious = run.counts[:, 0] / np.maximum(run.counts[:, 1], 1)
    order = np.argsort(ious, kind="stable").tolist()
    middle = max(0, (len(order) - _SHOWN) // 2)
    galleries = [
        Gallery(title, [_example(held, segmenter, index) for index in chosen])
        for title, chosen in (
            (f"Typical: the middle of {len(order)} episodes", order[middle : middle + _SHOWN]),
            ("The worst", order[:_SHOWN]),
        )
    ]
    return page(
        "uino-deploy train",
        [
            f"Learned from {', '.join(run.classes[:8])}{', ...' if len(run.classes) > 8 else ''}; "
            f"judged on {held.words} that it did not learn from, in {len(order)} episodes."
        ],
        [_verdict(judgement, tried)],
        [
            Section("Results", [_headlines(judgement, log, best_step), _beside(judgement)]),
            Section("Curves", _curves(log)),
            Section("Pictures", [LEGEND, *galleries]),
            Section("Method", [Text(_method(held, validation))]),
        ],
    )


def _verdict(judgement: Judgement, tried: Sequence[str]) -> Verdict:
    if judgement.beats_baselines:
        return Verdict("BEATS THE SIMPLE METHODS", "passed", [judgement.sentence])
    reasons = [judgement.sentence, *(f"To try: {each}." for each in tried)]
    return Verdict("DOES NOT BEAT THE SIMPLE METHODS", "failed", reasons)


def _headlines(judgement: Judgement, log: Sequence[Logged], best_step: int) -> Headlines:
    document, best = judgement.document, judgement.best_baseline
    before = document["before"]
    return Headlines(
        [
            Headline(f"{document['miou']:.1f}", "mIoU", f"on {document['held_out']}"),
            Headline(f"{best['difference']:+.1f}", f"against {best['model']}", "the best of three"),
            Headline(f"{before['difference']:+.1f}", "by training", f"from {before['miou']:.1f}"),
            Headline(f"{best_step}", "steps to the best state", f"{log[-1].step} steps trained"),
        ]
    )


def _beside(judgement: Judgement) -> Chart:
    rows = [
        Bar(name, {"model" if name in {BEFORE, TRAINED} else "simple methods": miou}, f"{miou:.1f}")
        for name, miou in ((name, run.score.miou) for name, run in judgement.runs.items())
    ]
    return bars("On the same episodes", "mIoU, per cent", ["model", "simple methods"], rows)


def _curves(log: Sequence[Logged]) -> list[Chart]:
    losses = [(row.step, row.loss) for row in log if row.loss is not None]
    width = -(-len(losses) // _POINTS)
    parts = [losses[first : first + width] for first in range(0, len(losses), width)]
    averaged = [(part[-1][0], mean(loss for _, loss in part)) for part in parts]
    judged = [(row.step, row.miou) for row in log if row.miou is not None]
    thinned = judged[:: -(-len(judged) // _POINTS)]
    best = max(judged, key=lambda each: each[1])
    shown = sorted({*thinned, best, judged[-1]})
    return [
        lines("Loss of the training episodes", "step", "mean loss", {"loss": averaged}),
        lines("Validation", "step", "mIoU, per cent", {"validation": shown, "best": [best]}),
    ]


def _example(held: Held, segmenter: Segmenter, index: int) -> Example:
    listed = held.episodes[index]
    shots, query, truth = load_episode(held.dataset, listed)
    found = segmenter(shots, query)
    fact = iou_fact(foreground_iou(found, truth))
    name = held.dataset.classes[listed.label]
    steps = [max(1, -(-max(each.shape[:2]) // _MOST)) for each in (shots[0][0], query)]
    image, mask = (each[:: steps[0], :: steps[0]] for each in shots[0])
    query, truth, found = (each[:: steps[1], :: steps[1]] for each in (query, truth, found))
    marked, real = [(mask != 0, TRUTH_COLOUR, SOLID)], [(truth == 1, TRUTH_COLOUR, SOLID)]
    return Example(
        name,
        [fact],
        [
            Picture("support", f"an image with the marked {name} painted", paint(image, marked)),
            Picture("truth", f"another image with the true {name} painted", paint(query, real)),
            Picture(
                "found",
                f"the same image with what is found painted: {fact[0]} per cent",
                paint_prediction(query, (truth == 1).astype(np.uint8), found),
            ),
        ],
    )


def _method(held: Held, validation: str) -> list[str]:
    fair = (
        "It chose the state and judges it too, which flatters the model: train with --fold for "
        "images that do neither."
        if held.words == validation
        else f"The bars, the pictures and the verdict are of {held.words}, which neither taught "
        "the model nor chose its state."
    )
    return [
        f"Validation: {validation} were held out. The same episodes are segmented each time, and "
        f"the state with the highest mIoU is kept, the one before training included. {fair}",
        "The curve counts pixels at the model's own image size; the bars and the pictures count "
        "them at the images' size, as uino-deploy evaluate does.",
        "The simple methods need no training: marking everything; the colour histogram of the "
        "marked pixels, back-projected; and the model's own encoder, whose tokens are compared "
        "with the mean token of the marked object and that of its surroundings. The model beats "
        "them if the 95 % bootstrap interval of the difference from each lies above zero.",
    ]
