"""The qualitative grid: support, query, truth, and what each of several models found."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.evaluation.metrics import count_pixels
from uino_deploy.evaluation.runs import Segment
from uino_deploy.images import UInt8, overlay
from uino_deploy.studies.tiles import montage

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS

_SUPPORT, _TRUTH, _FOUND = (64, 196, 255), (46, 204, 113), (255, 140, 0)


def qualitative_grid(
    segmenters: Mapping[str, Segment], dataset: Dataset, episodes: Sequence[ListedEpisode]
) -> UInt8:
    """Draw a row for each episode: its first support, the query's truth, and what each model found.

    Args:
        segmenters: by the label of their column.
        dataset: where the images are.
        episodes: to show.

    Returns:
        uint8 [H, W, 3].
    """
    rows = []
    for episode in episodes:
        shots = [
            (dataset.image(key), (dataset.mask(key, episode.label) == 1).astype(np.uint8))
            for key in episode.support
        ]
        query, truth = dataset.image(episode.query), dataset.mask(episode.query, episode.label)
        row = [
            (f"support: {dataset.classes[episode.label]}", overlay(*shots[0], _SUPPORT)),
            ("truth", overlay(query, (truth == 1).astype(np.uint8), _TRUTH)),
        ]
        for label, segment in segmenters.items():
            found = segment(shots, query)
            both, either, *_ = count_pixels(found, truth).tolist()
            row.append(
                (f"{label} {100 * both / max(either, 1):.0f}", overlay(query, found, _FOUND))
            )
        rows.append(row)
    return montage(rows)


def ablations(model: UinoFSS) -> dict[str, UinoFSS]:
    """Return a trained model with its correlation, and its contrast, switched off.

    They were trained with them: this shows what the trained parts lean on, not what a model without
    them would reach. Weights are shared.
    """
    found = {}
    prompts = model.prompt_generator
    for label, change in (
        ("no MHCM", {"hypercorrelation": None}),
        ("no CE", {"contrastive": False}),
    ):
        if all(getattr(prompts, name) == value for name, value in change.items()):
            continue  # this variant has none
        altered, generator = copy.copy(model), copy.copy(prompts)
        altered._modules = dict(model._modules)
        generator._modules = dict(prompts._modules)
        for name, value in change.items():
            setattr(generator, name, value)
        altered.prompt_generator = generator
        found[label] = altered
    return found
