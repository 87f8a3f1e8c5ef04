"""The provenance that a trained checkpoint records, and the identity of weights in training."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from uino_deploy import __version__
from uino_deploy.dependencies import installed_version

_LIBRARIES = ("torch", "numpy", "Pillow")


def describe(
    command: str, facts: Mapping[str, Any], libraries: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a checkpoint's provenance as plain values.

    Args:
        command: the command line that reproduces the checkpoint.
        facts: the facts particular to this training run.
        libraries: distributions that it used besides torch, numpy and Pillow.
    """
    versions = {name: installed_version(name) for name in (*_LIBRARIES, *libraries)}
    return {
        "created_by": f"uino-deploy {__version__}",
        "trained": True,
        "command": command,
        **facts,
        "versions": {"python": platform.python_version(), **versions},
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the names and the bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
