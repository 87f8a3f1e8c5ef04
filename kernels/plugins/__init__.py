"""TensorRT plugins of the two operators: which kind a TensorRT version takes, and its registration.

Both kinds are made from one description per operator (`kernels/<operator>/plugin.py`) and launch
the same compiled kernels:

- `aot`, TensorRT 10.9 and newer: quick-deployable plugins. The PTX goes into the engine, which
  then needs neither Python nor this module nor the kernels' folder when it runs.
- `ipluginv3`, TensorRT 10.3 and newer: plugins in Python that launch the cubin through
  cuda-python. Whoever deserializes such an engine calls `register_plugins` first, each time.

Imports neither torch, triton nor onnx; TensorRT is imported when plugins are registered.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Literal

from uino_deploy.dependencies import install_command
from uino_deploy.errors import BuildError, DependencyError

Route = Literal["aot", "ipluginv3"]

OLDEST: dict[Route, tuple[int, int]] = {"aot": (10, 9), "ipluginv3": (10, 3)}

_taken: Route | None = None


def register_plugins(architecture: str, kernels: Path | None, route: Route | None = None) -> Route:
    """Make TensorRT know Correlation4d and SelectiveScan2d of domain `uino`.

    To be called before an ONNX file is parsed for an engine with plugins, and before an engine of
    route `ipluginv3` is deserialized; engines of route `aot` need no call. Calling it again is
    harmless: engines made from then on take their kernels from the folder given last.

    Args:
        architecture: compute capability of the GPU, such as "sm_87".
        kernels: folder written by `uino-deploy kernels build` with kernels for the architecture;
            None where there is none, which is an error of its own.
        route: the kind of plugin; by the TensorRT version when None.

    Returns:
        The route that was taken.

    Raises:
        DependencyError: TensorRT is not installed, too old, or does not work with the NumPy that
            is; or cuda-python is not installed and the route needs it.
        BuildError: the folder is missing, or holds no intact kernels for the architecture.
    """
    global _taken  # noqa: PLW0603 - what TensorRT's registry holds, for the life of the process
    trt = _tensorrt()
    chosen = route or route_for(trt.__version__)
    _check_versions(trt.__version__, chosen)
    if _taken not in (None, chosen):
        raise BuildError(f"this process has registered its plugins by {_taken}, not {chosen}")
    if kernels is None:
        raise BuildError(
            f"there are no compiled kernels for {architecture}",
            f"uino-deploy kernels build --arch {architecture} -o DIR",
        )
    from uino_deploy.kernels.plugins.library import Library

    library = Library.open(kernels, architecture)
    if chosen == "ipluginv3":
        from uino_deploy.kernels.plugins.driver import bindings

        bindings()
    importlib.import_module(f"uino_deploy.kernels.plugins.{chosen}").register(library)
    _taken = chosen
    return chosen


def route_for(version: str) -> Route:
    """Return the route that a TensorRT version takes by default.

    Args:
        version: such as "10.16.1.11".

    Raises:
        DependencyError: the version has neither kind of plugin.
    """
    if _numbers(version) >= OLDEST["aot"]:
        return "aot"
    _check_versions(version, "ipluginv3")
    return "ipluginv3"


def _check_versions(version: str, route: Route) -> None:
    import numpy as np

    if _numbers(version) < OLDEST[route]:
        oldest = ".".join(map(str, OLDEST[route]))
        raise DependencyError(
            f"TensorRT {version} has no plugins of kind {route}",
            f"install TensorRT {oldest} or newer, or build the engine without plugins",
        )
    # Up to 11.2.0 TensorRT makes an int of a one-element array, which NumPy 2.4 refuses.
    if route == "aot" and _numbers(version) < (11, 2, 1) and _numbers(np.__version__) >= (2, 4):
        raise DependencyError(
            f"TensorRT {version} cannot read a plugin's attributes with NumPy {np.__version__}",
            "pip install 'numpy<2.4'",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise DependencyError(
            f"TensorRT cannot be imported: {error}", install_command("tensorrt")
        ) from error
