"""TensorRT plugins for the operators: the kind that a TensorRT version takes; registration.

Both kinds are made from one description per operator (`kernels/<operator>/plugin.py`) and launch
the same compiled kernels:

- `aot`, TensorRT 10.9 and newer: quick-deployable plugins. The PTX goes into the engine, which
  then needs neither Python nor this module nor the kernels' folder when it runs.
- `ipluginv3`, TensorRT 10.3 and newer: plugins in Python that launch the cubin through
  cuda-python. Call `register_plugins` before deserializing such an engine, each time.

Imports neither torch, triton nor onnx; TensorRT is imported when plugins are registered.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from uino_deploy.dependencies import install_command
from uino_deploy.errors import BuildError, DependencyError

Route = Literal["aot", "ipluginv3"]

OLDEST: dict[Route, tuple[int, int]] = {"aot": (10, 9), "ipluginv3": (10, 3)}

_taken: Route | None = None


def register_plugins(
    architecture: str,
    kernels: Path | None,
    route: Route | None = None,
    read: Callable[[Path], bytes] | None = None,
) -> Route:
    """Register the operators of domain `uino` with TensorRT.

    Call this before parsing an ONNX file for an engine with plugins, and before deserializing an
    engine of route `ipluginv3`; engines of route `aot` need no call. Another call is harmless:
    engines made afterwards take their kernels from the folder given last.

    Args:
        architecture: compute capability of the GPU, such as "sm_87".
        kernels: folder written by `uino-deploy kernels build` with kernels for the architecture;
            None if there is none, which raises.
        route: the kind of plugin; chosen by the TensorRT version if None.
        read: see `Library.open`.

    Returns:
        The route taken.

    Raises:
        DependencyError: TensorRT is not installed, is too old, or does not work with the installed
            NumPy; or the route needs cuda-python, which is not installed, or a newer driver.
        BuildError: the folder is missing, or holds no intact kernels for the architecture.
    """
    global _taken  # noqa: PLW0603 - TensorRT's registry lives as long as the process
    trt = _tensorrt()
    chosen = route or route_for(trt.__version__)
    _check_versions(trt.__version__, chosen)
    if _taken not in (None, chosen):
        raise BuildError(f"this process has registered its plugins by {_taken}, not {chosen}")
    if kernels is None:
        raise BuildError(
            f"no compiled kernels for {architecture}",
            f"uino-deploy kernels build --arch {architecture} -o DIR",
        )
    from uino_deploy.kernels.plugins.library import Library

    library = Library.open(kernels, architecture, read)
    if chosen == "ipluginv3":
        from uino_deploy.kernels.plugins.driver import check_driver

        check_driver(library.kernels)
    importlib.import_module(f"uino_deploy.kernels.plugins.{chosen}").register(library)
    _taken = chosen
    return chosen


def route_for(version: str) -> Route:
    """Return the route that a TensorRT version takes by default.

    Args:
        version: such as "10.16.1.11".

    Raises:
        DependencyError: the version supports neither kind of plugin.
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
    # Up to 11.2.0 TensorRT converts a one-element array to an int, which NumPy 2.4 refuses.
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
