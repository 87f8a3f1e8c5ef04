"""The verdict on a runner's outputs: their errors against float32 PyTorch on the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.benchmarks.record import MAIN, Accuracy, Case, PieceError
from uino_deploy.benchmarks.worker import EPISODES
from uino_deploy.export.verify import mask_iou
from uino_deploy.tolerances import mask_iou_floor, miou_drop, relative_l2, whole_tolerance

Outputs = Mapping[str, npt.NDArray[Any]]


def read_outputs(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the outputs that a worker's `judge` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)


def judge(
    got: Outputs,
    wanted: Outputs,
    pieces: Sequence[PieceError],
    precisions: Sequence[str],
    trained: bool,
) -> Accuracy:
    """Compare a runner's outputs with the reference's.

    Args:
        got: the runner's outputs; a case that it cannot run is missing.
        wanted: the reference's outputs.
        pieces: the errors of single pieces.
        precisions: the precisions of its pieces; the coarsest sets the budget.
        trained: the weights are trained, so masks are meaningful.
    """
    keys = [key for key in wanted if key.endswith(", logits") and key in got]
    errors = [relative_l2(got[key], wanted[key]) for key in keys]
    ious = [mask_similarity(got, wanted, key.removesuffix(", logits")) for key in keys]
    mious = [_miou(outputs[EPISODES]) for outputs in (got, wanted) if EPISODES in outputs]
    accuracy = Accuracy(
        reference="pytorch",
        photographs=sum(key.startswith(f"{MAIN}, query") for key in keys),
        logits_relative_l2=max(errors, default=float("inf")),
        logits_allowed=whole_tolerance(precisions).relative_l2,
        mask_iou=min(ious, default=0.0),
        mask_iou_floor=mask_iou_floor(precisions) if trained else None,
        miou=mious[0] if len(mious) == 2 else None,
        reference_miou=mious[1] if len(mious) == 2 else None,
        miou_drop_allowed=miou_drop(precisions) if len(mious) == 2 else None,
        pieces=list(pieces),
        failures=[],
    )
    accuracy.failures = failures(accuracy)
    return accuracy


def judge_by_stored(pieces: Sequence[PieceError], precisions: Sequence[str]) -> Accuracy:
    """Return the accuracy on the example stored in the bundle, for use without PyTorch."""
    logits = [piece.relative_l2 for piece in pieces if piece.output == "logits"]
    accuracy = Accuracy(
        reference="stored",
        photographs=0,
        logits_relative_l2=max(logits, default=float("inf")),
        logits_allowed=whole_tolerance(precisions).relative_l2,
        mask_iou=None,
        mask_iou_floor=None,
        miou=None,
        reference_miou=None,
        miou_drop_allowed=None,
        pieces=list(pieces),
        failures=[],
    )
    accuracy.failures = failures(accuracy)
    return accuracy


def failures(accuracy: Accuracy) -> list[str]:
    """Return a line for each error over its budget, with the measurement and the budget."""
    reasons = [
        f"{piece.piece}.{piece.output} differs by {piece.relative_l2:.2e} relative L2, "
        f"allowed {piece.allowed:.0e}"
        for piece in accuracy.pieces
        if not piece.passed
    ]
    # Written so that NaN fails.
    if not accuracy.logits_relative_l2 <= accuracy.logits_allowed:
        reasons.append(
            f"the logits differ by {accuracy.logits_relative_l2:.2e} relative L2, "
            f"allowed {accuracy.logits_allowed:.0e}"
        )
    floor, iou = accuracy.mask_iou_floor, accuracy.mask_iou
    if floor is not None and iou is not None and not iou >= floor:
        reasons.append(f"a mask's IoU with PyTorch's is {iou:.4f}, below the required {floor}")
    if accuracy.miou is not None and accuracy.reference_miou is not None:
        drop, allowed = accuracy.reference_miou - accuracy.miou, accuracy.miou_drop_allowed
        if allowed is not None and not drop <= allowed:
            reasons.append(f"the mIoU is {drop:.2f} points lower; allowed: {allowed}")
    return reasons


def case_accuracy(got: Outputs, wanted: Outputs, case: Case) -> tuple[float, float] | None:
    """Return the logits' relative L2 error and lowest mask IoU; None if the case did not run."""
    keys = [key for key in wanted if key.startswith(f"{case}, ") and key.endswith(", logits")]
    if not keys or any(key not in got for key in keys):
        return None
    ious = [mask_similarity(got, wanted, key.removesuffix(", logits")) for key in keys]
    return max(relative_l2(got[key], wanted[key]) for key in keys), min(ious)


def mask_similarity(got: Outputs, wanted: Outputs, key: str) -> float:
    """Return the IoU of a case's masks, which are packed as bits."""
    a, b = (np.unpackbits(outputs[f"{key}, masks"]) for outputs in (got, wanted))
    return mask_iou(a != 0, b != 0) if a.shape == b.shape else 0.0


def _miou(masks: npt.NDArray[Any]) -> float:
    """Return the mIoU of the held-out episodes' masks, one row of bits each."""
    from uino_deploy.data import draw_episode, load_pool
    from uino_deploy.evaluation.episodes import EVALUATION_SEED
    from uino_deploy.evaluation.metrics import score_masks

    pool = load_pool("held-out")
    episodes = [draw_episode(pool, EVALUATION_SEED, index) for index in range(len(masks))]
    truths = [episode.query.mask for episode in episodes]
    predicted = [
        np.unpackbits(bits, count=truth.size).reshape(truth.shape)
        for bits, truth in zip(masks, truths, strict=True)
    ]
    labels = [episode.label for episode in episodes]
    return score_masks(len(pool.labels), labels, predicted, truths).miou
