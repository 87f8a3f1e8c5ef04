"""Images that set the scales of int8 layers when the user gives none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.episodes import draw_episode
from uino_deploy.data.pools import load_pool
from uino_deploy.dependencies import require

SCENES = 6
_SEED = 20


def calibration_images() -> list[NDArray[np.uint8]]:
    """Return scikit-learn's two photographs, each whole and its quarters, and six demo scenes.

    The scenes show classes that the demo's model was trained on, none that it is evaluated on.

    Returns:
        uint8 [H, W, 3], always the same.

    Raises:
        DependencyError: scikit-learn or matplotlib is not installed.
    """
    require("train", "sklearn", "matplotlib")
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped] # it has none

    photographs: list[NDArray[np.uint8]] = load_sample_images().images
    images = [part for photograph in photographs for part in (photograph, *_quarters(photograph))]
    pool = load_pool("base")
    scenes = [draw_episode(pool, _SEED, index).query.image for index in range(SCENES)]
    return images + scenes


def _quarters(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    return [
        image[top : top + rows, left : left + columns] for top in (0, rows) for left in (0, columns)
    ]
