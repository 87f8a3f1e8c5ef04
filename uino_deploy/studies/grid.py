"""The qualitative grid: support, query, truth, and the masks of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.data.dataset import Dataset, ListedEpisode
from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.open import DatasetName, open_dataset
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import EVALUATION_SEED, load_episode
from uino_deploy.evaluation.metrics import foreground_iou
from uino_deploy.evaluation.segmenters import Segment, model_segmenter, open_segmenter
from uino_deploy.files import refuse_existing, refuse_input
from uino_deploy.images import UInt8, overlay
from uino_deploy.studies.rows import with_prompt
from uino_deploy.studies.tiles import montage, write_picture

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS

_SUPPORT, _TRUTH, _PREDICTED = (64, 196, 255), (46, 204, 113), (255, 140, 0)


def draw_grid(
    sources: Sequence[Path],
    dataset: DatasetName,
    output: Path,
    *,
    data: Path | None = None,
    fold: int | None = None,
    shots: int = 1,
    count: int = 8,
    seed: int = EVALUATION_SEED,
    ablate: bool = False,
    force: bool = False,
) -> list[str]:
    """Draw episodes with the mask of each model and its IoU; write the picture.

    Args:
        sources: checkpoints (files) and bundles (folders, run by ONNX Runtime).
        dataset: one of `data.open.DATASETS`.
        output: the picture, a PNG.
        data: the data set's folder; None for demo and digits, which are drawn.
        fold: the data set's fold, if it has folds.
        shots: support images per episode.
        count: number of episodes, the first ones of the seed.
        seed: the seed of the episodes.
        ablate: also draw the single checkpoint with MHCM, and with CE, switched off.
        force: replace an existing picture.

    Returns:
        The labels of the models' columns.

    Raises:
        InputError: `ablate` without a single checkpoint, or a model or an image cannot be read.
        OutputExists: the picture exists and `force` is not given.
    """
    refuse_existing(output, force)
    refuse_input(output, sources)
    if ablate and (len(sources) != 1 or sources[0].is_dir()):
        raise InputError("--ablate needs a single checkpoint")
    opened = open_dataset(dataset, data, fold)
    episodes = draw_list(opened, count, shots, seed)
    names = [source.name for source in sources]
    labels = names if len(set(names)) == len(names) else [str(source) for source in sources]
    segmenters = {
        label: open_segmenter(source) for label, source in zip(labels, sources, strict=True)
    }
    if ablate:
        from uino_deploy.model.checkpoint import load_checkpoint

        reduced = switched_off(load_checkpoint(sources[0]))
        segmenters |= {label: model_segmenter(model) for label, model in reduced.items()}
    write_picture(qualitative_grid(segmenters, opened, episodes), output, force)
    return list(segmenters)


def qualitative_grid(
    segmenters: Mapping[str, Segment], dataset: Dataset, episodes: Sequence[ListedEpisode]
) -> UInt8:
    """Draw a row for each episode: its first support, the query's truth, and each model's mask.

    Args:
        segmenters: by the label of their column.
        dataset: holds the images.
        episodes: the episodes to show.

    Returns:
        uint8 [H, W, 3].
    """
    rows = []
    for episode in episodes:
        shots, query, truth = load_episode(dataset, episode)
        row = [
            (f"support: {dataset.classes[episode.label]}", overlay(*shots[0], _SUPPORT)),
            ("truth", overlay(query, (truth == 1).astype(np.uint8), _TRUTH)),
        ]
        for label, segment in segmenters.items():
            predicted = segment(shots, query)
            iou = 100 * foreground_iou(predicted, truth)
            row.append((f"{label} {iou:.0f}", overlay(query, predicted, _PREDICTED)))
        rows.append(row)
    return montage(rows)


def switched_off(model: UinoFSS) -> dict[str, UinoFSS]:
    """Return a trained model with its correlation, and its contrast, switched off.

    It was trained with them: this shows what the trained parts rely on, not what a model trained
    without them would reach. All share the weights of the model.
    """
    import torch

    from uino_deploy.model.segmenter import UinoFSS

    prompt = model.config.prompt
    altered = {
        "no MHCM": replace(prompt, hypercorrelation="none"),
        "no CE": replace(prompt, contrastive=False),
    }
    trained = model.state_dict()
    models = {}
    for label, reduced in altered.items():
        if reduced == prompt:
            continue  # the model never had it
        with torch.device("meta"):  # no memory: the trained weights replace its own
            other = UinoFSS(with_prompt(model.config, reduced))
        other.load_state_dict({name: trained[name] for name in other.state_dict()}, assign=True)
        models[label] = other.eval()
    return models
