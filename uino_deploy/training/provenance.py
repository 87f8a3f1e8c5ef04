"""What a trained checkpoint says of how it was made."""

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
        command: the command line that makes such a checkpoint.
        facts: everything that is particular to this training.
        libraries: distributions that it depended on beside torch, numpy and Pillow.
    """
    versions = {name: installed_version(name) for name in (*_LIBRARIES, *libraries)}
    return {
        "created_by": f"uino-deploy {__version__}",
        "trained": True,
        "command": command,
        **facts,
        "versions": {"python": platform.python_version(), **versions},
    }
