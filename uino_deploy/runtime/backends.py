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
        providers: of ONNX Runtime, preferred first; cpu when None.
        threads: of the CPU; the backend's choice when None.
    """

    providers: Sequence[str] | None = None
    threads: int | None = None


def _onnxruntime(options: BackendOptions) -> Backend:
    from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(options.providers or ("cpu",), options.threads)


# Name -> what makes it, and the options that it takes.
BACKENDS: dict[str, tuple[Callable[[BackendOptions], Backend], frozenset[str]]] = {
    "onnxruntime": (_onnxruntime, frozenset({"providers", "threads"})),
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
