"""Examples to compare on: generated or given images through the PyTorch model, edge by edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uino_deploy.config import UinoConfig
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.model.segmenter import UinoFSS

Image = npt.NDArray[np.uint8]
_SIDE = 160


def generated_shot(seed: int) -> tuple[Image, Image]:
    """Draw a smooth random image with a brighter disc, and the disc's mask.

    Returns:
        image uint8 [160, 160, 3] and mask uint8 [160, 160], 0 or 1; the same for the same seed.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    frequency, phase = random.uniform(1, 6, (2, 3)), random.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * (frequency[0] * x[..., None] + frequency[1] * y[..., None]) + phase)
    centre, radius = random.uniform(0.3, 0.7, 2), random.uniform(0.15, 0.3)
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    noise = random.normal(0, 0.05, (_SIDE, _SIDE, 3))
    image = 0.4 + 0.2 * waves + 0.3 * disc[..., None] * random.uniform(0.3, 1, 3) + noise
    return (image.clip(0, 1) * 255).astype(np.uint8), disc.astype(np.uint8)


def example_of(
    model: UinoFSS, query: Image, shots: Sequence[tuple[Image, Image]]
) -> dict[str, Tensor]:
    """Run the model on a query and its support, keeping every tensor that passes between pieces.

    Args:
        model: float32, in evaluation mode.
        query: uint8 [H, W, 3].
        shots: images uint8 [H, W, 3] with masks uint8 [H, W], 0 or 1.

    Returns:
        float32 tensors under the names of `uino_deploy.reference`.
    """
    config = model.config
    images = torch.stack([_image(image, config) for image, _ in shots])
    masks = torch.stack([_mask(mask, config) for _, mask in shots])
    with torch.inference_mode():
        support = model.enroll(images[None], masks[None])
        image = _image(query, config)[None]
        early, deep = model.encoder(image)
        dense = model.prompt_generator(deep, support.deep, support.weight, support.prototypes)
        embedding = model.adapter(early)
        logits, iou = model.decoder(embedding, support.sparse, dense)
    # Without contrastive enhancement the weight is the mask itself; a file holds no tensor twice.
    weight = support.weight.clone()
    sparse = {} if support.sparse is None else {"sparse": support.sparse}
    tensors = {
        "support_image": images,
        "mask": masks,
        "support_deep": support.deep,
        "weight": weight,
        "prototypes": support.prototypes[0],
        **sparse,
        "image": image,
        "early": early,
        "query_deep": deep,
        "embedding": embedding,
        "dense": dense,
        "logits": logits,
        "iou": iou,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def logits_from(model: UinoFSS, tensors: dict[str, Tensor]) -> Tensor:
    """Finish in PyTorch from whatever is known, so that one piece's output can be another's.

    Args:
        model: the reference.
        tensors: an example from which those of embedding, dense and logits that shall be computed
            anew are left out.
    """
    known = dict(tensors)
    generator = model.prompt_generator
    with torch.inference_mode():
        if "embedding" not in known:
            known["embedding"] = model.adapter(known["early"])
        if "dense" not in known:
            known["dense"] = generator(
                known["query_deep"],
                known["support_deep"],
                known["weight"],
                known["prototypes"][None],
            )
        if "logits" not in known:
            known["logits"], _ = model.decoder(
                known["embedding"], known.get("sparse"), known["dense"]
            )
    return known["logits"]


def _image(image: Image, config: UinoConfig) -> Tensor:
    return torch.from_numpy(preprocess_image(image, config.image_size))


def _mask(mask: Image, config: UinoConfig) -> Tensor:
    return torch.from_numpy(preprocess_mask(mask, config.image_size, config.encoder.patch))
