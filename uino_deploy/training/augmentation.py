"""What may change an image before the encoder: mirroring, and cutting and recolouring at random.

A mirrored image is one of two, so its tokens can be kept; a cut or recoloured one never comes
again. Tokens themselves are not turned or mirrored: each holds its position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uino_deploy.images import UInt8

_LIGHT = 0.25  # how far each colour's strength may lie from 1


@dataclass(frozen=True)
class Change:
    """A change of an image and its mask.

    Attributes:
        mirror: left and right are exchanged, last of all.
        window: top, left, bottom and right of what is kept, in pixels; all if None.
        gains: factors on red, green and blue.
    """

    mirror: bool = False
    window: tuple[int, int, int, int] | None = None
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def image(self, image: UInt8) -> UInt8:
        """Return the changed image, uint8 RGB [H, W, 3] -> [h, w, 3]."""
        cut = self.mask(image)
        if self.gains == (1.0, 1.0, 1.0):
            return cut
        lit: UInt8 = np.clip(np.rint(cut * np.array(self.gains)), 0, 255).astype(np.uint8)
        return lit

    def mask(self, mask: UInt8) -> UInt8:
        """Return the changed mask, [H, W] -> [h, w]."""
        top, left, bottom, right = self.window or (0, 0, *mask.shape[:2])
        cut = mask[top:bottom, left:right]
        return np.ascontiguousarray(cut[:, ::-1] if self.mirror else cut)


KEEP = Change()
"""No change."""


def draw_change(rng: np.random.Generator, mirror: bool, mask: UInt8) -> Change:
    """Draw a window that holds all of the class, and the colours of the light.

    Args:
        rng: the only source of randomness.
        mirror: whether to mirror.
        mask: uint8 [H, W], 1 where the class is; without it, the window is the whole image.
    """
    height, width = mask.shape
    rows, columns = (np.flatnonzero((mask == 1).any(axis=axis)) for axis in (1, 0))
    window = None
    if len(rows):
        top, bottom = _around(rng, int(rows[0]), int(rows[-1]) + 1, height)
        left, right = _around(rng, int(columns[0]), int(columns[-1]) + 1, width)
        window = (top, left, bottom, right)
    red, green, blue = rng.uniform(1 - _LIGHT, 1 + _LIGHT, 3).tolist()
    return Change(mirror, window, (red, green, blue))


def _around(rng: np.random.Generator, first: int, last: int, side: int) -> tuple[int, int]:
    """Draw an interval around [first, last), at least a pixel wider on each side where it can."""
    return int(rng.integers(max(first, 1))), int(rng.integers(min(last + 1, side), side + 1))
