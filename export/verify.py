"""Verification of a bundle: each piece by itself, each piece within the model, and the whole.

The reference is a PyTorch model on given or generated images, or, without torch, the outputs stored
in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from uino_deploy.bundle import Bundle, Precision
from uino_deploy.bundle.reference import Example, inputs_of, load_example, outputs_of, tensor_of
from uino_deploy.errors import CheckFailed
from uino_deploy.export.graph_reader import precision_of
from uino_deploy.images import load_image, load_mask
from uino_deploy.letters import draw_letter
from uino_deploy.pipeline import CLASS, QUERY, WHOLE, route_of, with_class_axis
from uino_deploy.runtime.session import feeds_of, run_pieces, to_host
from uino_deploy.tolerances import mask_iou_floor, piece_tolerance, relative_l2, whole_tolerance

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
    from uino_deploy.runtime.session import Backend, Session

Array = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]
# An image uint8 RGB [H, W, 3] or its file; a mask uint8 [H, W] of 0 and 1 or its file.
Source = Image | str | Path
Shot = tuple[Source, Source]

# What was got and what was wanted of each example, by the output's name.
Pairs = dict[str, list[tuple[Array, Array]]]

GENERATED_LETTERS = "AR"


class Comparison(msgspec.Struct, kw_only=True):
    """One exported output against the reference, the worst of all examples.

    Attributes:
        piece: the exported piece, or "query" for the whole model.
        output: its output.
        max_abs: largest absolute difference.
        relative_l2: |exported - reference| / |reference|: the tolerance that would have passed.
        cosine: between the two, as vectors.
        allowed: the largest relative_l2 allowed, from the table of tolerances.
        passed: relative_l2 <= allowed, and all values finite.
    """

    piece: str
    output: str
    max_abs: float
    relative_l2: float
    cosine: float
    allowed: float
    passed: bool


class Swap(msgspec.Struct, kw_only=True):
    """The mask with one piece exported and the others in PyTorch ("query": all exported).

    Attributes:
        piece: the exported piece.
        logits_relative_l2: error of the final logits, the worst of all examples.
        logits_allowed: the largest allowed.
        mask_iou: IoU with PyTorch's mask, the worst of all examples; 1 if both are empty.
        iou_floor: the least allowed.
        passed: both are within bounds.
    """

    piece: str
    logits_relative_l2: float
    logits_allowed: float
    mask_iou: float
    iou_floor: float
    passed: bool


class VerifyReport(msgspec.Struct, kw_only=True):
    """The result of `verify`.

    Attributes:
        bundle: its folder's name.
        reference: "pytorch", or "stored" for the example inside the bundle.
        backend: the backend that ran the exported pieces.
        examples: number of examples compared.
        pieces: every output of every piece.
        swaps: the effect of each piece on the mask; only "query" for a stored reference.
        guilty: the pieces whose own outputs fail.
        operators: what our operators take and give inside the prompt's piece and the whole; only
            where ONNX Runtime runs the pieces and the reference has it.
        mislabelled: the pieces whose graph computes in another precision than the manifest says.
        passed: every comparison and every mask passes, and no piece is mislabelled.
        reason: the first failure; empty when passed.
    """

    bundle: str
    reference: str
    backend: dict[str, str]
    examples: int
    pieces: list[Comparison]
    swaps: list[Swap]
    guilty: list[str]
    passed: bool
    reason: str
    operators: list[Comparison] = msgspec.field(default_factory=list)
    mislabelled: list[str] = msgspec.field(default_factory=list)

    def require(self) -> None:
        """Raise unless everything passes.

        Raises:
            CheckFailed: a comparison failed; the message is the reason.
        """
        if not self.passed:
            raise CheckFailed(self.reason)


def verify_bundle(
    bundle: Bundle,
    backend: Backend,
    model: UinoFSS | None = None,
    examples: Sequence[tuple[Source, Sequence[Shot]]] = (),
    progress: Callable[[str], None] = lambda _note: None,
) -> VerifyReport:
    """Compare a bundle's pieces with their reference.

    Args:
        bundle: opened.
        backend: runs the exported pieces.
        model: the PyTorch model that was exported, float32; None to use the stored reference.
        examples: queries with their shots (images and masks), as arrays or files; generated ones
            if empty. Only with a model.
        progress: called with a note before each piece.

    Raises:
        CheckFailed: the model is not the one that the bundle was exported from.
        InputError: an image or a mask cannot be read.
    """
    if model is not None:
        _check_same_model(bundle, model)
    loaded = _examples(bundle, model, examples)
    names = [name for name in bundle.manifest.pieces if name != WHOLE]
    # The graphs' own: a label must not widen the bounds.
    precisions = {n: precision_of(bundle.read(bundle.piece(n).model)) for n in names}
    mislabelled = [
        f"piece {name} is {bundle.piece(name).precision} in the manifest and {actual} in its graph"
        for name, actual in precisions.items()
        if actual != bundle.piece(name).precision
    ]
    comparisons: list[Comparison] = []
    swaps: list[Swap] = []
    decision = bundle.manifest.decision
    budget = 0.0 if decision is None else decision.min_mask_iou
    for name in names:
        progress(f"comparing {name}")
        session = backend.load(bundle, name)
        outputs = [session.run(inputs_of(session.piece, example)) for example in loaded]
        comparisons += _compare_piece(session, precisions[name], loaded, outputs)
        if model is not None:
            swaps.append(_swap(model, name, precisions[name], loaded, outputs, budget))
    progress("comparing the whole model")
    swaps.append(_whole(bundle, backend, list(precisions.values()), loaded, budget))
    operators = _compare_operators(bundle, backend, precisions["prompt"], loaded)
    guilty = sorted({c.piece for c in (*comparisons, *operators) if not c.passed})
    reason = "; ".join(mislabelled) or _reason([*comparisons, *operators], swaps)
    return VerifyReport(
        bundle=bundle.root.name,
        reference="stored" if model is None else "pytorch",
        backend=backend.describe(),
        examples=len(loaded),
        pieces=comparisons,
        swaps=swaps,
        guilty=guilty,
        passed=not reason,
        reason=reason,
        operators=operators,
        mislabelled=mislabelled,
    )


def _check_same_model(bundle: Bundle, model: UinoFSS) -> None:
    from uino_deploy.export.exporter import fingerprint

    if fingerprint(model) != bundle.manifest.fingerprint:
        raise CheckFailed(
            f"{bundle.root} was not exported from this model: their fingerprints differ",
            "give the checkpoint that was exported, or verify without one",
        )


def _examples(
    bundle: Bundle, model: UinoFSS | None, given: Sequence[tuple[Source, Sequence[Shot]]]
) -> list[Example]:
    if model is None:
        return [load_example(bundle)]
    from uino_deploy.export.examples import example_of

    # Several classes, to expose a backend that wrongly keeps state of the previous one.
    drawn = enumerate(GENERATED_LETTERS)
    generated = [(draw_letter(2 * i, each)[0], [draw_letter(2 * i + 1, each)]) for i, each in drawn]
    made: list[Example] = []
    for query, shots in given or generated:
        loaded = [(_load(image, load_image), _load(mask, load_mask)) for image, mask in shots]
        tensors = example_of(model, _load(query, load_image), loaded)
        made.append({name: tensor.numpy() for name, tensor in tensors.items()})
    return made


def _load(source: Source, read: Callable[[str | Path], Image]) -> Image:
    return read(source) if isinstance(source, (str, Path)) else source


def _compare_piece(
    session: Session,
    precision: Precision,
    examples: list[Example],
    outputs: list[dict[str, Array]],
) -> list[Comparison]:
    piece = session.piece
    comparisons = []
    for edge in piece.outputs:
        pairs = [
            (got[edge.name], outputs_of(piece, example)[edge.name])
            for got, example in zip(outputs, examples, strict=True)
        ]
        comparisons.append(_compared(piece.name, edge.name, precision, pairs))
    return comparisons


def _compared(
    piece: str, output: str, precision: Precision, pairs: list[tuple[Array, Array]]
) -> Comparison:
    """Compare what was exported with what was wanted."""
    allowed = piece_tolerance(precision).relative_l2
    relative = max(relative_l2(got, wanted) for got, wanted in pairs)
    return Comparison(
        piece=piece,
        output=output,
        max_abs=max(_max_abs(got, wanted) for got, wanted in pairs),
        relative_l2=relative,
        cosine=min(_cosine(got, wanted) for got, wanted in pairs),
        allowed=allowed,
        passed=relative <= allowed,
    )


def _compare_operators(
    bundle: Bundle, backend: Backend, precision: Precision, examples: list[Example]
) -> list[Comparison]:
    """Compare what our operators take and give: a piece's outputs need not depend on them.

    Where the backend runs native operators, the functions that the files hold are compared as
    well: other runtimes run those.
    """
    from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

    if not isinstance(backend, OnnxRuntimeBackend):
        return []
    compared: list[Comparison] = []
    for form in filter(None, (backend, backend.portable())):
        compared += _compare_form(bundle, form, precision, examples)
    return compared


def _compare_form(
    bundle: Bundle, backend: OnnxRuntimeBackend, precision: Precision, examples: list[Example]
) -> list[Comparison]:
    """Compare the operators in the form that a backend runs.

    The prompt's piece is compared with the reference. The whole is compared with the prompt's piece
    behind the encoder's, both exported, so that an error of the encoder is not taken for one of the
    operators.
    """
    from uino_deploy.export.operator_taps import exported

    prompt, whole = bundle.piece("prompt"), bundle.piece(WHOLE)
    alone: Pairs = {}
    for example in examples:
        for name, array in exported(bundle, backend, prompt, inputs_of(prompt, example)).items():
            alone.setdefault(name, []).append((array, tensor_of(example, name)))
    compared = [_compared(prompt.name, name, precision, pairs) for name, pairs in alone.items()]
    if not all(each.passed for each in compared):
        return compared  # it is no measure of the whole
    encoder = backend.load(bundle, "encoder")
    joined: Pairs = {}
    for example in examples:
        known = {**example, **QUERY.named(encoder.run(inputs_of(encoder.piece, example)))}
        feeds = {edge.name: known[edge.name] for edge in prompt.inputs}
        got = exported(bundle, backend, whole, inputs_of(whole, example))
        for name, array in exported(bundle, backend, prompt, feeds).items():
            found = got.get(name, np.empty(0, np.float32))
            joined.setdefault(name, []).append((found, array))
    return compared + [
        _compared(whole.name, name, precision, pairs) for name, pairs in joined.items()
    ]


def _swap(
    model: UinoFSS,
    name: str,
    precision: Precision,
    examples: list[Example],
    outputs: list[dict[str, Array]],
    budget: float,
) -> Swap:
    """Put one exported piece into the PyTorch model and compare the mask."""
    import torch

    from uino_deploy.export.examples import logits_from

    route = route_of(name)
    pairs = []
    for example, got in zip(examples, outputs, strict=True):
        made = route.named(got)
        swapped = {**example, **(with_class_axis(made) if route is CLASS else made)}
        tensors = {
            key: torch.from_numpy(np.array(value, np.float32)) for key, value in swapped.items()
        }
        pairs.append((logits_from(model, name, tensors).numpy(), example["logits"]))
    return _judge(name, [precision], pairs, budget)


def _whole(
    bundle: Bundle,
    backend: Backend,
    precisions: Sequence[Precision],
    examples: list[Example],
    budget: float,
) -> Swap:
    """Enroll and segment with exported graphs only, the query as one graph."""
    support = [backend.load(bundle, name) for name in CLASS.pieces]
    query = backend.load(bundle, WHOLE)
    pairs = []
    for example in examples:
        given = {name: example[name] for name in CLASS.ends.inputs}
        enrolled = run_pieces(CLASS, support, given)
        known = with_class_axis({name: to_host(value) for name, value in enrolled.items()})
        feeds = feeds_of(QUERY, query, {**known, "image": example["image"]})
        pairs.append((query.run(feeds)["logits"], example["logits"]))
    return _judge(WHOLE, precisions, pairs, budget)


def _judge(
    name: str, precisions: Sequence[str], pairs: list[tuple[Array, Array]], budget: float
) -> Swap:
    """Judge by the precisions' bounds, and by the budget that the types were chosen for, if any."""
    allowed = whole_tolerance(precisions).relative_l2
    floor = max(mask_iou_floor(precisions), budget)
    relative = max(relative_l2(got, wanted) for got, wanted in pairs)
    iou = min(mask_iou(got > 0, wanted > 0) for got, wanted in pairs)
    return Swap(
        piece=name,
        logits_relative_l2=relative,
        logits_allowed=allowed,
        mask_iou=iou,
        iou_floor=floor,
        passed=relative <= allowed and iou >= floor,
    )


def _reason(comparisons: list[Comparison], swaps: list[Swap]) -> str:
    """Describe the first failure, pieces before the whole, and the tolerance that would pass."""
    for c in comparisons:
        if not c.passed:
            return (
                f"{c.piece}.{c.output} differs by {c.relative_l2:.2e} relative L2, allowed "
                f"{c.allowed:.0e}; a tolerance of {c.relative_l2:.2e} would have passed"
            )
    for s in swaps:
        if not s.passed:
            return (
                f"with {s.piece} exported the logits differ by {s.logits_relative_l2:.2e} "
                f"(allowed {s.logits_allowed:.0e}) and the mask's IoU is {s.mask_iou:.4f} "
                f"(at least {s.iou_floor})"
            )
    return ""


def mask_iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _max_abs(got: Array, wanted: Array) -> float:
    return float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))


def _cosine(got: Array, wanted: Array) -> float:
    a, b = got.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 1.0
