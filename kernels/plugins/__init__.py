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

from pathlib import Path
from typing import Literal

Route = Literal["aot", "ipluginv3"]


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
    raise NotImplementedError
