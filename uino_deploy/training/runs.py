"""What distillation and episodic training share around the engine: proof, provenance, result."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from uino_deploy import __version__
from uino_deploy.dependencies import installed_version
from uino_deploy.errors import CheckFailed
from uino_deploy.model.assembly import Assembly
from uino_deploy.model.checkpoint import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS

MODEL = "model.safetensors"
_LIBRARIES = ("torch", "numpy", "Pillow")


def frozen_digest(model: UinoFSS, learning: Iterable[str]) -> str:
    """Return a SHA-256 of all tensors of a model but those of the parts that learn."""
    digest = hashlib.sha256()
    parts = tuple(f"{name}." for name in learning)
    for name, tensor in model.state_dict().items():
        if not name.startswith(parts):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_frozen(before: str, model: UinoFSS, learning: Iterable[str]) -> None:
    """Compare with `frozen_digest` from before the training.

    Raises:
        CheckFailed: a part that is frozen has changed.
    """
    if frozen_digest(model, learning) != before:
        raise CheckFailed("a frozen part of the model changed in training", "this is a bug")


def save_result(
    folder: Path,
    assembly: Assembly,
    learned: Iterable[str],
    command: str,
    settings: Mapping[str, Any],
) -> Path:
    """Write the trained model into its run's folder, with how it came about.

    Args:
        folder: of the run.
        assembly: the model, and what it was put together from.
        learned: the parts that were trained.
        command: what was run.
        settings: all that the result depends on.

    Returns:
        The checkpoint's path.
    """
    path = folder / MODEL
    learned = tuple(learned)
    provenance = {
        "created_by": f"uino-deploy {__version__}",
        "trained": True,
        "command": command,
        "learned": list(learned),
        "untrained": [part for part in assembly.untrained if part not in learned],
        "sources": [msgspec.to_builtins(source) for source in assembly.sources],
        "settings": dict(settings),
        "versions": {
            "python": platform.python_version(),
            **{name: installed_version(name) for name in _LIBRARIES},
        },
    }
    save_checkpoint(assembly.model.eval().cpu(), path, provenance, force=True)
    return path
