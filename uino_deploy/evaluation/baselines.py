"""What needs no training: the simple methods that every evaluation is compared with.

- mark everything: the whole query.
- colour histogram: back-projection (Swain and Ballard, 1991). A pixel is foreground if its colour
  is more frequent in the support's foreground than in its background, by histograms of 6x6x6
  colours, blurred twice; the ratio is averaged over windows of 1/32 of the image's side.
- prototypes: a patch is foreground if its token, by the model's own encoder, is nearer (by cosine)
  to the support's mean foreground token than to its mean background token.

On the things and the glyphs these rules beat every threshold found on the support that was tried.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from uino_deploy.bundle.presence import unit
from uino_deploy.evaluation.segmenters import Segmenter, Shots, Tokens
from uino_deploy.images import Float32, UInt8, upsample_logits
from uino_deploy.images.colours import blurred, colour_cells

MODEL = "model"
EVERYTHING = "mark everything"
COLOURS = "colour histogram"
PROTOTYPES = "prototypes"
BASELINES = (EVERYTHING, COLOURS, PROTOTYPES)

_LEVELS = 6  # of each colour
_WINDOW = 32
_MOST = 384  # pixels along a side


def baseline_masks(shots: Shots, query: UInt8, tokens: Tokens) -> dict[str, UInt8]:
    """Segment a query by every baseline.

    Args:
        shots: the support images and their masks.
        query: uint8 RGB [H, W, 3].
        tokens: of the same episode.

    Returns:
        The query's masks, uint8 [H, W] of 0 and 1, by the baselines' names.
    """
    return {
        EVERYTHING: np.ones(query.shape[:2], np.uint8),
        COLOURS: by_colour(shots, query),
        PROTOTYPES: by_prototypes(tokens, *query.shape[:2]),
    }


def with_baselines(segmenter: Segmenter) -> Callable[[Shots, UInt8], dict[str, UInt8]]:
    """Return a model, as `MODEL`, and the baselines as methods for `episodes.run_methods`.

    The encoder runs once for all.
    """

    def methods(shots: Shots, query: UInt8) -> dict[str, UInt8]:
        answer = segmenter.answer(shots, query)
        return {MODEL: answer.mask, **baseline_masks(shots, query, answer.tokens)}

    return methods


def by_colour(shots: Shots, query: UInt8) -> UInt8:
    """Segment a query by the colours of the support; see the module's description."""
    small = [(_shrunk(image), _shrunk(mask) != 0) for image, mask in shots]
    foreground, background = (
        _histogram([image[mask == shown] for image, mask in small]) for shown in (True, False)
    )
    scores = foreground / np.maximum(foreground + background, np.finfo(np.float64).tiny)
    found = upsample_logits(_back_projected(_shrunk(query), scores), *query.shape[:2])
    return (found > 0.5).astype(np.uint8)


def by_prototypes(tokens: Tokens, height: int, width: int) -> UInt8:
    """Segment a query by its tokens' likeness to the support's; see the module's description."""
    support, query = unit(tokens.support), unit(tokens.query)
    shares = tokens.shares[..., None]
    foreground, background = (
        (support * weight).sum(axis=(0, 1)) for weight in (shares, 1 - shares)
    )
    nearer = query @ (unit(foreground) - unit(background))
    side = round(len(query) ** 0.5)
    return (upsample_logits(nearer.reshape(side, side), height, width) > 0).astype(np.uint8)


def _shrunk(image: UInt8) -> UInt8:
    """Return every n-th pixel, [H, W, ...], so that no side is over `_MOST`: colours stay exact."""
    step = -(-max(image.shape[:2]) // _MOST)
    return image[::step, ::step]


def _histogram(pixels: list[UInt8]) -> NDArray[np.float64]:
    """Return the shares of colours among pixels [M, 3], blurred, [_LEVELS ** 3]."""
    cells = np.concatenate([colour_cells(each, _LEVELS) for each in pixels])
    counts = np.bincount(cells, minlength=_LEVELS**3).astype(np.float64)
    cube = blurred(blurred(counts.reshape(_LEVELS, _LEVELS, _LEVELS)))
    shares: NDArray[np.float64] = cube.ravel() / max(cube.sum(), 1e-12)
    return shares


def _back_projected(image: UInt8, scores: NDArray[np.float64]) -> Float32:
    """Return every pixel's score, averaged over its window, float32 [H, W]."""
    grey = Image.fromarray((255 * scores[colour_cells(image, _LEVELS)]).astype(np.uint8))
    radius = round(min(image.shape[:2]) / _WINDOW / 2)
    mean = np.asarray(grey.filter(ImageFilter.BoxBlur(radius)))
    scaled: Float32 = mean.astype(np.float32) / np.float32(255)
    return scaled
