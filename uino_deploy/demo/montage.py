"""The demo's pictures: its scenes with the truth and the prediction painted over them."""

from __future__ import annotations

from collections.abc import Sequence

from uino_deploy.demo.segmentation import Outcome
from uino_deploy.page import Example, Gallery, Picture
from uino_deploy.painting import SOLID, TRUTH_COLOUR, iou_fact, paint, paint_prediction


def gallery(title: str, outcomes: Sequence[Outcome]) -> Gallery:
    """Return an example for each outcome: support, query, truth and prediction."""
    return Gallery(title, [_example(outcome) for outcome in outcomes])


def _example(outcome: Outcome) -> Example:
    support, query = outcome.episode.support[0], outcome.episode.query
    name, (iou, grade) = outcome.title, iou_fact(outcome.iou)
    return Example(
        title=name,
        facts=[
            (iou, grade),
            (f"predicted IoU {100 * outcome.result.score:.0f}", ""),
        ],
        pictures=[
            Picture(
                "support",
                f"the support image, with the marked {name} painted",
                paint(support.image, [(support.mask != 0, TRUTH_COLOUR, SOLID)]),
            ),
            Picture("query", f"the query image, in which {name} is to be found", query.image),
            Picture(
                "truth",
                f"the query image, with the true {name} painted",
                paint(query.image, [(query.mask != 0, TRUTH_COLOUR, SOLID)]),
            ),
            Picture(
                "prediction",
                f"the query image, with the prediction painted: {iou} per cent",
                paint_prediction(query.image, query.mask, outcome.result.mask),
            ),
        ],
    )
