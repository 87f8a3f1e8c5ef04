"""The provenance that a trained checkpoint records."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

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
