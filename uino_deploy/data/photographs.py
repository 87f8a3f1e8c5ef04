"""Photographs that installed packages ship, and masks for pictures that have none.

Where only the distance from a reference on the same input counts, real masks are not needed: a
class is an ellipse marked in a photograph.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# scikit-image downloads its other pictures on demand.
_SHIPPED = (
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    ("skimage", "data", ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")),
)


def shipped_photographs() -> list[Path]:
    """Return the photographs of scikit-learn and scikit-image, without importing the packages."""
    paths = []
    for module, folder, names in _SHIPPED:
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent / folder
            paths += [root / name for name in names if (root / name).is_file()]
    return paths


def ellipse(height: int, width: int, number: int) -> NDArray[np.uint8]:
    """Return mask `number`: an ellipse over a twelfth to a third of the image, uint8 [H, W]."""
    random = np.random.default_rng([height, width, number])
    y, x = np.mgrid[0:height, 0:width]
    centre = random.uniform(0.35, 0.65, 2)
    radius = random.uniform(0.17, 0.32, 2)
    down, across = (y / height - centre[0]) / radius[0], (x / width - centre[1]) / radius[1]
    mask: NDArray[np.uint8] = (down**2 + across**2 < 1).astype(np.uint8)
    return mask
