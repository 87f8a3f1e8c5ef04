"""The runtime's backends by name, and which options each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from uino_deploy.errors import InputError
from uino_deploy.runtime.session import Backend


@dataclass(frozen=True)
class BackendOptions:
    """What may be asked of a backend; each takes some of it (`BACKENDS`) and refuses the rest.

    Attributes:
        providers: of ONNX Runtime, preferred first, each `NAME[:key=value,...]`; cpu when None.
        threads: of the CPU; the backend's choice when None.
        cuda_graphs: record a piece's launches once and replay them.
    """

    providers: Sequence[str] | None = None
    threads: int | None = None
    cuda_graphs: bool = False


def _onnxruntime(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(options.providers or ("cpu",), options.threads)


def _openvino(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.openvino_backend import OpenVinoBackend

    return OpenVinoBackend(options.threads)


def _tensorrt(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

    return TensorRtBackend("tensorrt", options.cuda_graphs)


def _tensorrt_rtx(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

    return TensorRtBackend("tensorrt-rtx", options.cuda_graphs)


# Name -> what makes it, and the options that it takes.
BACKENDS: dict[str, tuple[Callable[[BackendOptions], Backend], frozenset[str]]] = {
    "onnxruntime": (_onnxruntime, frozenset({"providers", "threads"})),
    "openvino": (_openvino, frozenset({"threads"})),
    "tensorrt": (_tensorrt, frozenset({"cuda_graphs"})),
    "tensorrt-rtx": (_tensorrt_rtx, frozenset({"cuda_graphs"})),
}


def open_backend(name: str, options: BackendOptions | None = None) -> Backend:
    """Make a backend.

    Args:
        name: one of `BACKENDS`.
        options: what is asked of it.

    Raises:
        InputError: an unknown backend, or an option that it does not take.
        DependencyError: what it needs is not here.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", f"choose from {', '.join(BACKENDS)}")
    make, known = BACKENDS[name]
    asked = options or BackendOptions()
    for field in fields(asked):
        if field.name not in known and getattr(asked, field.name) != field.default:
            raise InputError(
                f"backend {name} takes no {field.name.replace('_', ' ')}",
                f"it takes {', '.join(sorted(known)) or 'no option'}",
            )
    return make(asked)
