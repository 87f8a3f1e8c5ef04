"""Episodes: K support scenes and a query scene that share one class, among distractors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.pools import Pool
from uino_deploy.data.scenes import PLAIN, SCENE_SIZE, Deformation, Scene, compose_scene

_GLYPHS = (2, 4)  # glyphs in a scene, both included


@dataclass(frozen=True)
class LabelledScene:
    """A scene and the class of every mask.

    Attributes:
        scene: the image and its disjoint masks; the first mask is the episode's target.
        labels: class numbers within the pool, one for each mask.
    """

    scene: Scene
    labels: tuple[int, ...]

    @property
    def image(self) -> NDArray[np.uint8]:
        """RGB, uint8 [S, S, 3]."""
        return self.scene.image

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The target's mask, uint8 [S, S], 0 or 1."""
        target: NDArray[np.bool_] = self.scene.masks[0]
        return target.astype(np.uint8)


@dataclass(frozen=True)
class Episode:
    """A class shown in K support scenes, and a query scene to segment.

    Attributes:
        label: the target's class number within the pool.
        support: K scenes with the target and distractors.
        query: another such scene.
    """

    label: int
    support: tuple[LabelledScene, ...]
    query: LabelledScene


def draw_episode(
    pool: Pool,
    seed: int,
    index: int,
    shots: int = 1,
    size: int = SCENE_SIZE,
    deformation: Deformation = PLAIN,
) -> Episode:
    """Draw one episode; the same arguments give the same pixels.

    Classes come in rounds of a shuffled order, so that every `len(pool.labels)` consecutive
    episodes show each class once. Distractors come from the same pool and never show the target's
    class.

    Args:
        pool: the classes to draw from.
        seed: the sequence of episodes.
        index: position within the sequence.
        shots: support scenes K.
        size: the scenes' side in pixels.
        deformation: applied to every glyph.
    """
    classes = len(pool.labels)
    turn, position = divmod(index, classes)
    label = int(np.random.default_rng([seed, turn]).permutation(classes)[position])
    rng = np.random.default_rng([seed, turn, position])
    scenes = tuple(draw_scene(pool, label, rng, size, deformation) for _ in range(shots + 1))
    return Episode(label, scenes[:-1], scenes[-1])


def draw_scene(
    pool: Pool, label: int, rng: np.random.Generator, size: int, deformation: Deformation
) -> LabelledScene:
    """Draw a scene with the target's class and one to three distractors of other classes."""
    count = int(rng.integers(_GLYPHS[0], _GLYPHS[1], endpoint=True)) - 1
    others = rng.choice(np.delete(np.arange(len(pool.labels)), label), size=count, replace=False)
    labels = [label, *others.tolist()]
    scene = compose_scene([pool.sprite(each, rng) for each in labels], rng, size, deformation)
    return LabelledScene(scene, tuple(labels[index] for index in scene.placed))
