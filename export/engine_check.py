"""Freshly built plans on the bundle's own example, in its own process.

A library can silently build a wrong engine; `uino_deploy.miscompiles` lists known cases.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.bundle.reference import Example, inputs_of, load_example, outputs_of
from uino_deploy.child import Note
from uino_deploy.errors import DependencyError, InputError, UinoDeployError
from uino_deploy.export.forecast.gate import departs
from uino_deploy.export.verify import mask_iou
from uino_deploy.pipeline import WHOLE
from uino_deploy.runtime.backends import open_backend
from uino_deploy.runtime.session import Array, Backend
from uino_deploy.tolerances import mask_iou_floor, piece_tolerance, relative_l2, whole_tolerance


class Request(msgspec.Struct, kw_only=True):
    """The plans to run.

    Attributes:
        root: the bundle's folder.
        backend: "tensorrt" or "tensorrt-rtx".
        precisions: piece -> the precisions that it computes in; a query may have several.
    """

    root: str
    backend: str
    precisions: dict[str, list[str]]


class Answer(msgspec.Struct, kw_only=True):
    """The result of the check.

    Attributes:
        wrong: the first wrong output; empty if none is wrong.
        skipped: why a plan could not be run; empty if all ran.
    """

    wrong: str = ""
    skipped: str = ""


def check(request: Any, note: Note) -> Answer:
    """Run plans on the bundle's example, as a child's job; each note is a piece's name."""
    asked = msgspec.convert(request, Request)
    answer = Answer()
    try:
        bundle = Bundle.open(asked.root, verify=False, require_signature=False)
        backend = open_backend(asked.backend)
        example = load_example(bundle)
    except DependencyError as error:
        return Answer(skipped=str(error))
    for name, precisions in asked.precisions.items():
        note(name)
        try:
            answer.wrong = find_wrong(bundle, backend, name, precisions, example)
        except (DependencyError, InputError) as error:  # such as a range without the example's size
            answer.skipped = answer.skipped or f"{name}: {error}"
        except UinoDeployError as error:
            answer.wrong = str(error)
        if answer.wrong:
            break
    return answer


def find_wrong(
    bundle: Bundle, backend: Backend, name: str, precisions: list[str], example: Example
) -> str:
    """Return the first output of a piece that is wrong on an example, or an empty string."""
    session = backend.load(bundle, name)
    outputs = session.run(inputs_of(session.piece, example))
    for output, wanted in outputs_of(session.piece, example).items():
        reason = _judge(session.piece, output, outputs[output], wanted, precisions)
        decision = bundle.manifest.decision
        if not reason and decision is not None and (name, output) == (WHOLE, "logits"):
            reason = departs(relative_l2(outputs[output], wanted), decision.example_error)
        if reason:
            return reason
    return ""


def _judge(piece: Piece, output: str, found: Array, wanted: Array, precisions: list[str]) -> str:
    one = len(precisions) == 1 and piece.name != "query"
    bound = piece_tolerance(precisions[0]) if one else whole_tolerance(precisions)
    error = relative_l2(found, wanted)
    if not error <= bound.relative_l2:
        return (
            f"{piece.name}.{output} differs from the bundle's example by {error:.2e} relative L2, "
            f"allowed {bound.relative_l2:.0e}"
        )
    least = mask_iou_floor(precisions)
    if output == "logits" and mask_iou(np.asarray(found) > 0, np.asarray(wanted) > 0) < least:
        return f"{piece.name}: the mask's IoU with the bundle's example is below {least}"
    return ""
