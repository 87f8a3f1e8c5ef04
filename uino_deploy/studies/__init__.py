"""Studies of the model: the ablation, and figures of masks and of self-similarity."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uino_deploy.studies.ablation import ablate as ablate
    from uino_deploy.studies.grid import draw_grid as draw_grid
    from uino_deploy.studies.similarity import draw_similarity as draw_similarity

__all__ = ["ablate", "draw_grid", "draw_similarity"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m uino_deploy.studies.ablation` runs it once."""
    if name == "ablate":
        from uino_deploy.studies.ablation import ablate

        return ablate
    if name == "draw_grid":
        from uino_deploy.studies.grid import draw_grid

        return draw_grid
    if name == "draw_similarity":
        from uino_deploy.studies.similarity import draw_similarity

        return draw_similarity
    raise AttributeError(f"module 'uino_deploy.studies' has no attribute {name!r}")
