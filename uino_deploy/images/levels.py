"""A mask decided from its values: two levels, labels with an ignored border, or soft edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.errors import InputError
from uino_deploy.images.opening import UInt8
from uino_deploy.images.soft import FEW_LABELS, HINT, flat, half, halfway, to_bytes

IGNORED = 255
"""Mask value of the pixels that count neither for nor against a prediction."""

# Labels are few; a coder's ringing, soft edges and probabilities have more values than this.
_FEW = 64
# Shares of pixels that equal three of their four neighbours: labels lie flat, soft edges do not.
_FLAT, _FLATTER, _STEEP = 0.5, 0.8, 0.1
_NEAR = 32 / 255
# How far a pixel may lie from shades of one colour, and the share of those that lie further.
_HUE, _FEW_PIXELS = 48, 0.1
_STRIP_PIXELS = 1 << 20
_VOC_BORDER = 224 << 16 | 224 << 8 | 192


@dataclass(frozen=True)
class Marked:
    """A decided mask.

    Attributes:
        mask: uint8 [H, W]: 0, 1, or `IGNORED`.
        assumed: what had to be assumed, for people; empty where the values leave no doubt.
        kind: one word for the assumption.
    """

    mask: UInt8
    assumed: str = ""
    kind: str = ""


def decide(values: npt.NDArray[Any], label: int | None = None) -> Marked:
    """Decide which pixels of a grey mask are the object.

    Two levels are background and object. A few levels in flat areas are labels: `label` names the
    object's, else all but 0 are the object, and 255 beside lower labels is an ignored border. Any
    other mask whose values reach half of their range is soft, and cut there.

    Args:
        values: [H, W]: integers of 8 or 16 bits, or floats in [0, 1].
        label: the object's value.

    Raises:
        InputError: no pixel has the label, or the values allow more than one reading.
    """
    if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 255):
        raise InputError(f"it holds numbers from {values.min():g} to {values.max():g}", HINT)
    if values.dtype.kind in "iu" and not (values.min() >= 0 and values.max() <= 65535):
        raise InputError(f"it holds values from {values.min()} to {values.max()}", HINT)
    levels, counts = _levels(values)
    if label is not None:
        return _labelled(values, levels, label)
    top = _top(values.dtype, float(levels[-1]))
    if len(levels) == 1:
        return Marked((values != 0).astype(np.uint8))
    if len(levels) == 2:
        return _two(values, levels, top)
    return _several(values, levels, counts, top)


def decide_colours(colours: UInt8, label: int | None = None) -> Marked:
    """Decide a mask of colours as `decide` does: every colour but black is the object.

    Args:
        colours: uint8 [H, W, 3].
        label: refused unless the colours are greys.

    Raises:
        InputError: as `decide`.
    """
    red, green, blue = (colours[:, :, each] for each in range(3))
    if (red == green).all() and (green == blue).all():
        return decide(red, label)
    if label is not None:
        raise InputError("it holds colours, not labels", "save it as grey values or a palette")
    strongest, weakest = colours.max(axis=2), colours.min(axis=2)
    codes = red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue
    seen = np.zeros(1 << 24, np.bool_)  # a sort of all pixels would take many times as long
    seen[codes] = True
    levels = np.flatnonzero(seen)
    if len(levels) == 2 and levels[0] == 0:
        return Marked((codes != 0).astype(np.uint8))
    border = codes == _VOC_BORDER
    body = (codes != 0) & ~border
    # A lossy coder leaves blacks that are not quite black.
    nearly = bool(((strongest > 0) & (strongest <= _NEAR * 255)).any())
    if nearly or len(levels) > _FEW or (levels[0] == 0 and flat(codes, body) < _FLAT):
        return _one_hue(colours, strongest, weakest)
    if int((strongest - weakest).max()) <= _NEAR * 255:
        return decide(strongest)
    if levels[0] != 0:
        _refuse_two(f"{len(levels)} colours, none is black")
    others = len(levels) - 1 - (_VOC_BORDER in levels)
    mask = body.astype(np.uint8)
    mask[border] = IGNORED
    return _union(mask, f"{others} colours", others)


def _one_hue(colours: UInt8, strongest: UInt8, weakest: UInt8) -> Marked:
    """Decide a mask of shades of one colour, which may be white, as of grey values."""
    lit = strongest >= max(_NEAR * 255, int(strongest.max()) // 2)
    hue = colours[lit].mean(axis=0) if lit.any() else np.full(3, 255.0)
    others = 0
    rows = max(1, _STRIP_PIXELS // max(1, strongest.shape[1]))
    for top in range(0, len(strongest), rows):
        shade = strongest[top : top + rows, :, None] * (hue / hue.max())
        others += int((np.abs(colours[top : top + rows] - shade).max(axis=2) > _HUE).sum())
    if others > _FEW_PIXELS * strongest.size:
        coloured = np.count_nonzero(strongest - weakest > _NEAR * 255) / strongest.size
        raise InputError(
            f"it holds shades of several colours ({coloured:.0%} of its pixels are no greys): a "
            "picture, or labels that a coder blurred",
            HINT,
        )
    return decide(strongest)


def decide_indices(indices: UInt8, label: int | None = None) -> Marked:
    """Decide a mask of a palette's indices: labels, 0 for the background, 255 an ignored border.

    Args:
        indices: uint8 [H, W].
        label: the object's index.

    Raises:
        InputError: no pixel has the label.
    """
    levels, _ = _levels(indices)
    if label is not None:
        return _labelled(indices, levels, label)
    body = [int(each) for each in levels if each not in (0, IGNORED)]
    if len(levels) > FEW_LABELS and flat(indices, indices != 0) < _FLATTER:
        raise InputError(f"it holds {len(levels)} colours that lie nowhere flat: a picture", HINT)
    mask = (indices != 0).astype(np.uint8)
    mask[indices == IGNORED] = IGNORED
    return _union(mask, f"labels {_listed(body)}", len(body))


def _two(values: npt.NDArray[Any], levels: npt.NDArray[Any], top: float) -> Marked:
    low, high = float(levels[0]), float(levels[1])
    if low != 0 and not low < top / 2 <= high:
        _refuse_two(f"two levels, {low:g} and {high:g}, and neither is black")
    return Marked((values == levels[1]).astype(np.uint8))


def _several(
    values: npt.NDArray[Any], levels: npt.NDArray[Any], counts: npt.NDArray[Any], top: float
) -> Marked:
    seen = f"it holds {len(levels)} levels, {_listed(levels, counts)}"
    histogram = np.bincount(to_bytes(levels, top), weights=counts, minlength=256)
    middle = halfway(values, histogram, top)
    if middle is not None:
        # The object of 0 and 255 is cut at half, as any other soft mask.
        return _cut(values, top, seen, top / 2 if abs(middle / top - 0.5) < _NEAR else middle)
    inner = levels[(levels != 0) & (levels != top)].astype(np.float64)
    share = flat(values, (values != 0) & (values != top))
    whole = levels[-1] != top
    many = len(levels) > FEW_LABELS
    if values.dtype.kind == "f" or len(levels) > _FEW or share < _STEEP:
        return _cut(values, top, seen, half(values, histogram, top, seen))
    if share >= (_FLATTER if many else _FLAT) and (inner.max() <= top / 3 or whole):
        mask = (values != 0).astype(np.uint8)
        if not whole:
            mask[values == top] = IGNORED
        return _union(mask, f"labels {_listed(inner)}", len(inner))
    if many or (inner.max() > top / 3 and share < _FLAT) or _at_the_ends(inner, top):
        return _cut(values, top, seen, half(values, histogram, top, seen))
    raise InputError(f"{seen}: an unsure region, labels, or soft edges?", HINT)


def _at_the_ends(inner: npt.NDArray[Any], top: float) -> bool:
    return bool((np.minimum(inner, top - inner) <= _NEAR * top).all() and inner.max() > top / 3)


def _cut(values: npt.NDArray[Any], top: float, seen: str, at: float) -> Marked:
    where = f"half of {top:g}" if at == top / 2 else f"{at:.3g}, between two levels"
    return Marked((values >= at).astype(np.uint8), f"{seen}: it is cut at {where}", "soft")


def _labelled(values: npt.NDArray[Any], levels: npt.NDArray[Any], label: int) -> Marked:
    if label not in levels:
        raise InputError(f"no pixel has label {label}; it holds {_listed(levels)}")
    mask = (values == label).astype(np.uint8)
    if label != IGNORED:
        mask[values == IGNORED] = IGNORED
    return Marked(mask)


def _union(mask: UInt8, what: str, count: int) -> Marked:
    border = " and a border of 255, which is ignored" if (mask == IGNORED).any() else ""
    if count < 2:
        return Marked(mask, f"it holds {what}{border}", "border") if border else Marked(mask)
    return Marked(
        mask, f"it holds {what}{border}: all are taken for the object; --label takes one", "labels"
    )


def _refuse_two(seen: str) -> Marked:
    raise InputError(f"it holds {seen}: which is the object?", HINT)


def _levels(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the values in use and how many pixels have each, by strips: masks may be large."""
    if values.dtype.kind == "f":
        return np.unique(values, return_counts=True)
    counts = np.zeros(65536, np.int64)
    rows = max(1, _STRIP_PIXELS // values.shape[1])  # a mask may also be one pixel wide
    for top in range(0, len(values), rows):
        counts += np.bincount(values[top : top + rows].ravel(), minlength=65536)
    levels = np.flatnonzero(counts)
    return levels, counts[levels]


def _top(dtype: np.dtype[Any], largest: float) -> float:
    if dtype.kind == "f" and largest <= 1:
        return 1.0
    return 255.0 if largest <= 255 else 65535.0


def _listed(levels: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> str:
    """Return up to six levels as text, with their shares if their counts are given."""
    numbers = np.asarray(levels)
    shown = [f"{each:g}" for each in numbers[:6]]
    if counts is not None:
        shares = np.asarray(counts) / np.sum(counts)
        shown = [f"{each} ({share:.1%})" for each, share in zip(shown, shares, strict=False)]
    return ", ".join(shown) + (f", ... {numbers[-1]:g}" if len(numbers) > 6 else "")
