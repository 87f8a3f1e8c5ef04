"""Studies of the model: the ablation, and figures of masks and of self-similarity."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if TYPE_CHECKING:
    from uino_deploy.studies.ablation import ablate as ablate
    from uino_deploy.studies.grid import draw_grid as draw_grid
    from uino_deploy.studies.similarity import draw_similarity as draw_similarity

__all__ = ["ablate", "draw_grid", "draw_similarity"]

# So `python -m uino_deploy.studies.ablation` runs that module once.
__getattr__ = on_first_use(
    __name__, "ablation.ablate", "grid.draw_grid", "similarity.draw_similarity"
)
