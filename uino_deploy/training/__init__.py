"""Training: distillation, episodes of a data set, and a model from scratch by a recipe."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if TYPE_CHECKING:
    from uino_deploy.training.distillation import distill as distill
    from uino_deploy.training.episodic import train as train
    from uino_deploy.training.from_scratch import train_recipe as train_recipe

__all__ = ["distill", "train", "train_recipe"]

# A command's help needs no torch.
__getattr__ = on_first_use(
    __name__, "distillation.distill", "episodic.train", "from_scratch.train_recipe"
)
