"""Few-shot segmentation data sets: published ones, folders, and drawings made from a seed."""

from uino_deploy.data.episodes import Episode, draw_episode
from uino_deploy.data.pools import Pool, load_pool
from uino_deploy.data.scenes import Scene, compose_scene

__all__ = [
    "Episode",
    "Pool",
    "Scene",
    "compose_scene",
    "draw_episode",
    "load_pool",
]
