"""Training: distillation, episodes of a data set, and a model from scratch by a recipe."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uino_deploy.training.distillation import distill as distill
    from uino_deploy.training.episodic import train as train
    from uino_deploy.training.from_scratch import train_recipe as train_recipe

__all__ = ["distill", "train", "train_recipe"]


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that a command's help needs no torch."""
    if name == "distill":
        from uino_deploy.training.distillation import distill

        return distill
    if name == "train":
        from uino_deploy.training.episodic import train

        return train
    if name == "train_recipe":
        from uino_deploy.training.from_scratch import train_recipe

        return train_recipe
    raise AttributeError(f"module 'uino_deploy.training' has no attribute {name!r}")
