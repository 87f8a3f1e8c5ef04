"""Helpers of the model's tests: published layouts, random weights, and an error measure."""

import gzip
import json
from pathlib import Path

import torch
from torch import Tensor

# File name -> tensor name -> shape: facebookresearch/dinov2's and segment-anything's checkpoints
# (`dinov2_*`, `sam_*`), and facebook/dinov2-* as transformers holds them (`hf_*`).
LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    file: {name: tuple(shape) for name, shape in tensors.items()}
    for file, tensors in json.loads(
        gzip.decompress((Path(__file__).parent / "data" / "layouts.json.gz").read_bytes())
    ).items()
}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Return weights at which no part of a transformer is idle.

    Matrices keep the variance of what passes through, scales are near 1, the rest is large enough
    to be seen in the output.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1 and not name.endswith("bias"):
            weights[name] = 1 + 0.3 * noise
        elif len(shape) > 1 and name.endswith("weight") and "token" not in name:
            weights[name] = noise * noise[0].numel() ** -0.5
        else:
            weights[name] = 0.3 * noise
    return weights


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return |got - expected| / |expected| in the L2 norm, computed in float64."""
    assert got.shape == expected.shape
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


def as_hub_file(name: str) -> str:
    """Return the name in a hub's `model.safetensors` of what transformers 5 names `name`."""
    for module, file in (
        ("attention.q_proj.", "attention.attention.query."),
        ("attention.k_proj.", "attention.attention.key."),
        ("attention.v_proj.", "attention.attention.value."),
        ("attention.o_proj.", "attention.output.dense."),
    ):
        name = name.replace(module, file)
    return name
