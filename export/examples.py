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


def example_of(
    model: UinoFSS, query: Image, shots: Sequence[tuple[Image, Image]]
) -> dict[str, Tensor]:
    """Run the model on a query and its support, keeping every tensor that passes between pieces.

    Args:
        model: float32, in evaluation mode.
        query: uint8 [H, W, 3].
        shots: images uint8 [H, W, 3] with masks uint8 [H, W], 0 or 1.

    Returns:
        float32 tensors under the names of `uino_deploy.bundle.reference`.
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
