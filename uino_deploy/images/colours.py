"""Colours counted in a cube of cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from uino_deploy.images.opening import UInt8


def colour_cells(pixels: UInt8, levels: int) -> npt.NDArray[np.intp]:
    """Return the cell of every pixel's colour, [..., 3] -> [...]: 0 to `levels ** 3 - 1`."""
    red, green, blue = np.moveaxis(pixels.astype(np.intp) * levels // 256, -1, 0)
    cells: npt.NDArray[np.intp] = (red * levels + green) * levels + blue
    return cells


def blurred(cubes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Blur counts along the last three axes: a colour near the border of two cells counts for both.

    Args:
        cubes: [..., L, L, L]; what leaves a cube is lost.
    """
    for axis in (-3, -2, -1):
        padding = [(0, 0)] * cubes.ndim
        padding[axis] = (1, 1)
        wide = np.pad(cubes, padding)
        before, middle, after = (
            np.take(wide, range(start, start + cubes.shape[axis]), axis) for start in range(3)
        )
        cubes = (before + 2 * middle + after) / 4
    return cubes
