"""What a trained checkpoint says of how it was made."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from uino_deploy import __version__
from uino_deploy.dependencies import installed_version
from uino_deploy.evaluation.pools import EVALUATION_SEED, Evaluation
from uino_deploy.training.recipe import Recipe

_LIBRARIES = ("torch", "numpy", "Pillow", "matplotlib", "scikit-learn")


def describe(
    recipe: Recipe, seed: int, seconds: float, measured: dict[str, Evaluation]
) -> dict[str, Any]:
    """Return a checkpoint's provenance as plain values.

    Args:
        recipe: the numbers it was trained by.
        seed: of the training.
        seconds: that the training took.
        measured: its evaluation on each pool; empty when it was not judged.
    """
    return {
        "created_by": f"uino-deploy {__version__}",
        "trained": True,
        "command": f"uino-deploy train --recipe {recipe.name} --seed {seed}",
        "recipe": asdict(recipe),
        "seed": seed,
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            **{name: installed_version(name) for name in _LIBRARIES},
        },
        "dataset": "procedural scenes of glyphs, base classes (uino_deploy/data)",
        "evaluation_seed": EVALUATION_SEED,
        "measured": {name: asdict(evaluation) for name, evaluation in measured.items()},
    }
