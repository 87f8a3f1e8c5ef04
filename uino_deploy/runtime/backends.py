"""The runtime's backends by name, and the options that each accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from uino_deploy.errors import InputError
from uino_deploy.runtime.session import Backend


@dataclass(frozen=True)
class BackendOptions:
    """Options of the backends; each accepts some of them (`BACKENDS`) and refuses the rest.

    Attributes:
        providers: ONNX Runtime's, preferred first, each `NAME[:key=value,...]`; cpu if None.
        threads: CPU threads; the backend's choice if None.
        cuda_graphs: record a piece's launches once and replay them.
        portable: on a processor, run the operators' portable forms in place of the native ones.
    """

    providers: Sequence[str] | None = None
    threads: int | None = None
    cuda_graphs: bool = False
    portable: bool = False


def _onnxruntime(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(options.providers or ("cpu",), options.threads, options.portable)


def _openvino(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.openvino_backend import OpenVinoBackend

    return OpenVinoBackend(options.threads, portable=options.portable)


def _tensorrt(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

    return TensorRtBackend("tensorrt", options.cuda_graphs)


def _tensorrt_rtx(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

    return TensorRtBackend("tensorrt-rtx", options.cuda_graphs)


# Name -> its constructor, and the options that it accepts.
BACKENDS: dict[str, tuple[Callable[[BackendOptions], Backend], frozenset[str]]] = {
    "onnxruntime": (_onnxruntime, frozenset({"providers", "threads", "portable"})),
    "openvino": (_openvino, frozenset({"threads", "portable"})),
    "tensorrt": (_tensorrt, frozenset({"cuda_graphs"})),
    "tensorrt-rtx": (_tensorrt_rtx, frozenset({"cuda_graphs"})),
}


def open_backend(name: str, options: BackendOptions | None = None) -> Backend:
    """Create a backend.

    Args:
        name: one of `BACKENDS`.
        options: the backend's options.

    Raises:
        InputError: the backend is unknown, or does not accept an option.
        DependencyError: a package or device that it needs is missing.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", f"choose from {', '.join(BACKENDS)}")
    make, known = BACKENDS[name]
    asked = options or BackendOptions()
    for field in fields(asked):
        if field.name not in known and getattr(asked, field.name) != field.default:
            raise InputError(
                f"backend {name} does not accept {field.name.replace('_', ' ')}",
                f"it accepts {', '.join(sorted(known)) or 'no options'}",
            )
    return make(asked)
