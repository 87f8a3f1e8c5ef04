"""A recipe's gate: the mIoU that a trained model must reach on classes that no step has seen."""

from __future__ import annotations

from collections.abc import Callable

from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.procedural import Procedural
from uino_deploy.data.thing_dataset import ThingDataset
from uino_deploy.evaluation.episodes import EVALUATION_SEED, Evaluation, run_episodes
from uino_deploy.evaluation.segmenters import model_segmenter
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.recipe import Recipe


def measure(
    model: UinoFSS, recipe: Recipe, done: Callable[[], None] = lambda: None
) -> dict[str, Evaluation]:
    """Evaluate a model, 1-shot, on every pool or data set in its recipe's gate.

    Args:
        model: the model, in evaluation mode.
        recipe: names them in `required_miou`.
        done: called after each episode.
    """
    segment = model_segmenter(model)
    measured: dict[str, Evaluation] = {}
    for name in recipe.required_miou:
        dataset = Procedural(name, name) if name in ("held-out", "digits") else ThingDataset(name)
        episodes = draw_list(dataset, recipe.judged_on, 1, EVALUATION_SEED)
        measured[name] = run_episodes(name, segment, dataset, episodes, done).evaluation
    return measured


def shortfalls(recipe: Recipe, measured: dict[str, Evaluation]) -> list[str]:
    """Return a line for every pool whose mIoU is below the recipe's requirement."""
    return [
        f"mIoU of {name} is {measured[name].miou:.1f}, below {required:.1f}"
        for name, required in recipe.required_miou.items()
        if measured[name].miou < required
    ]
