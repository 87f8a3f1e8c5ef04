"""The similarity of an image's places to each other in every layer of an encoder, and in SAM.

Source: UINO-FSS (arXiv 2504.15669), figure 2: the adapter reads the layer whose self-similarity is
closest to that of SAM's image embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.files import refuse_existing, refuse_input
from uino_deploy.images import Float32, UInt8, load_image, preprocess_image
from uino_deploy.progress import Progress, silent
from uino_deploy.studies.tiles import heat, mark, montage, write_picture

if TYPE_CHECKING:
    from uino_deploy.model.encoder import DinoVisionTransformer
    from uino_deploy.model.sam_encoder import SamImageEncoder
    from uino_deploy.model.segmenter import UinoFSS

_ACROSS = 6


@dataclass(frozen=True, eq=False)
class SelfSimilarity:
    """The cosines between all places of one image.

    Attributes:
        layers: [depth, N, N], after each block and the final LayerNorm.
        teacher: [N, N], SAM's embedding on the same grid; None without a teacher.
    """

    layers: Float32
    teacher: Float32 | None

    @property
    def grid(self) -> int:
        """Number of places along one side."""
        return math.isqrt(self.layers.shape[1])

    @property
    def closeness(self) -> list[float]:
        """Pearson correlation of each layer's cosines with the teacher's over all pairs of places.

        Raises:
            ValueError: the teacher is missing.
        """
        if self.teacher is None:
            raise ValueError("closeness needs a teacher")
        above = np.triu_indices(len(self.teacher), 1)
        truth = self.teacher[above]
        return [float(np.corrcoef(layer[above], truth)[0, 1]) for layer in self.layers]


@dataclass(frozen=True)
class EarlyLayer:
    """The layer whose similarities are closest to SAM's.

    Attributes:
        proposed: the block, from 1; None without a teacher.
        closeness: the correlation of each block's similarities with SAM's; empty without.
    """

    proposed: int | None
    closeness: list[float]


def draw_similarity(
    images: Sequence[Path],
    model: UinoFSS,
    output: Path,
    *,
    point: tuple[float, float] = (0.5, 0.5),
    sam_checkpoint: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> EarlyLayer:
    """Draw the similarity of a point to all others in every layer; write the picture.

    Args:
        images: files; the first is drawn, all contribute to the proposed layer.
        model: the model whose encoder is studied, in evaluation mode.
        output: the picture, a PNG.
        point: x and y in the first image, as fractions of its width and height.
        sam_checkpoint: Segment Anything's weights to compare with.
        force: replace an existing picture.
        progress: reports the number of encoded images.

    Returns:
        The layer whose similarities correlate best with SAM's over all images and all pairs of
        places.

    Raises:
        InputError: the point lies outside the image, or an image cannot be read.
        CheckpointError: SAM's weights cannot be read.
        OutputExists: the picture exists and `force` is not given.
    """
    from uino_deploy.model.checkpoint import load_sam_image_encoder

    refuse_existing(output, force)
    refuse_input(output, images)
    if not all(0 <= share < 1 for share in point):
        place = ",".join(f"{share:g}" for share in point)
        raise InputError(
            f"point {place} lies outside the image", "give fractions from 0 to below 1"
        )
    teacher = None if sam_checkpoint is None else load_sam_image_encoder(sam_checkpoint)
    pictures = [load_image(image) for image in images]
    maps = []
    with progress("encoding", len(pictures)) as done:
        for picture in pictures:
            maps.append(self_similarity(picture, model.config.image_size, model.encoder, teacher))
            done()
    early = EarlyLayer(None, []) if teacher is None else EarlyLayer(*propose_early_layer(maps))
    write_picture(similarity_figure(pictures[0], maps[0], point, early.proposed), output, force)
    return early


def self_similarity(
    image: UInt8,
    size: int,
    encoder: DinoVisionTransformer,
    teacher: SamImageEncoder | None = None,
) -> SelfSimilarity:
    """Encode an image and compare all of its places with each other.

    Args:
        image: uint8 [H, W, 3].
        size: side of the encoder's input in pixels.
        encoder: in evaluation mode.
        teacher: SAM's image encoder, likewise.
    """
    import copy

    import torch
    from torch.nn import functional

    from uino_deploy.model.layers import to_tokens
    from uino_deploy.training.teacher import prepare, spread

    every = copy.copy(encoder)  # shares the weights, and reads out every layer
    depth = encoder.config.depth
    every.config = replace(encoder.config, correlation_layers=tuple(range(1, depth + 1)))
    with torch.inference_mode():
        _, deep = every(torch.from_numpy(preprocess_image(image, size))[None])
        layers = _cosines(deep[0].numpy())
        if teacher is None:
            return SelfSimilarity(layers, None)
        prepared = prepare(image, teacher.config.image_size)
        embedding = spread(teacher(torch.from_numpy(prepared.pixels)[None]), prepared.covered)
        grid = round(layers.shape[1] ** 0.5)
        resized = functional.interpolate(
            embedding, size=(grid, grid), mode="bilinear", antialias=True
        )
        return SelfSimilarity(layers, _cosines(to_tokens(resized).numpy())[0])


def propose_early_layer(maps: Sequence[SelfSimilarity]) -> tuple[int, list[float]]:
    """Return the block (from 1) closest to the teacher on average, and every block's closeness."""
    closeness = np.mean([each.closeness for each in maps], axis=0)
    return int(closeness.argmax()) + 1, [float(value) for value in closeness]


def similarity_figure(
    image: UInt8, maps: SelfSimilarity, point: tuple[float, float], early: int | None = None
) -> UInt8:
    """Draw the similarity of a point to all others, in all layers and in the teacher.

    Args:
        image: uint8 [H, W, 3].
        maps: the image's cosines.
        point: its x and y as fractions of the image's width and height.
        early: the layer to mark with a star.

    Returns:
        uint8 [H', W', 3].
    """
    grid = maps.grid
    column, row = (min(grid - 1, int(share * grid)) for share in point)
    place = row * grid + column
    tiles = [("image", mark(image, *point))]
    if maps.teacher is not None:
        tiles.append(("SAM", _tile(maps.teacher[place], grid, image)))
    tiles += [
        (f"layer {number}{' *' if number == early else ''}", _tile(layer[place], grid, image))
        for number, layer in enumerate(maps.layers, 1)
    ]
    return montage([tiles[first : first + _ACROSS] for first in range(0, len(tiles), _ACROSS)])


def _tile(cosines: Float32, grid: int, image: UInt8) -> UInt8:
    """Colour a map and resize it to the image's proportions."""
    from PIL import Image

    coloured = Image.fromarray(heat(cosines.reshape(grid, grid)))
    height, width = image.shape[:2]
    return np.asarray(coloured.resize((width, height), Image.Resampling.NEAREST))


def _cosines(tokens: Float32) -> Float32:
    """Return the cosines between tokens, from [M, N, D] -> [M, N, N]."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    cosines: Float32 = (unit @ unit.transpose(0, 2, 1)).astype(np.float32)
    return cosines
