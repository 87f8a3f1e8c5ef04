"""A recipe's gate: the mIoU that a trained model must reach on classes that no step has seen."""

from __future__ import annotations

from collections.abc import Callable

from uino_deploy.data.pools import load_pool
from uino_deploy.evaluation.pools import Evaluation, evaluate_episodes
from uino_deploy.evaluation.segmenters import episode_segmenter
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.recipe import Recipe


def measure(
    model: UinoFSS, recipe: Recipe, done: Callable[[], None] = lambda: None
) -> dict[str, Evaluation]:
    """Evaluate a model, 1-shot, on every pool of classes that the recipe is judged on.

    Args:
        model: the model, in evaluation mode.
        recipe: names the pools in `required_miou`.
        done: called after each episode.
    """
    segment = episode_segmenter(model)
    size = model.config.image_size
    return {
        name: evaluate_episodes(segment, load_pool(name), recipe.judged_on, size=size, done=done)
        for name in recipe.required_miou
    }


def shortfalls(recipe: Recipe, measured: dict[str, Evaluation]) -> list[str]:
    """Return a line for every pool whose mIoU is below what the recipe requires."""
    return [
        f"mIoU of {name} is {measured[name].miou:.1f}, below {required:.1f}"
        for name, required in recipe.required_miou.items()
        if measured[name].miou < required
    ]
