"""The groups of claims by name, those that must run, and the job that checks one.

`uino_deploy.child` runs the job. Its notes name each claim that it starts, and carry the findings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.plans import EngineBackend
from uino_deploy.child import Note
from uino_deploy.dependencies import installed_version, is_importable
from uino_deploy.errors import DependencyError
from uino_deploy.export.engines import RTX_ARCHITECTURES
from uino_deploy.runtime.backends import BACKENDS, BackendOptions, open_backend
from uino_deploy.runtime.session import Backend
from uino_deploy.selftest import bundle, gpu, operators
from uino_deploy.selftest.findings import Claim, judge
from uino_deploy.selftest.setting import Setting

Group = Callable[[], list[Claim]]

_ONNXRUNTIME_GPU = ("cuda", "tensorrt", "tensorrt-rtx")
_RTX_ADAPTERS = ("onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime-ep-nv-tensorrt-rtx-cu13")


def groups(setting: Setting, on_gpu: bool) -> dict[str, Group]:
    """Return, for each group, the function that creates its claims, in the order of checking.

    A group is one kind of claim, or one bundle on one backend; each has its own process.
    """
    exports = {"export": partial(bundle.export_claims, setting)} if setting.bundle is None else {}
    if on_gpu:
        by_name: dict[str, Group] = {
            "gpu": gpu.device_claims,
            "kernels": partial(gpu.kernel_claims, setting),
            **exports,
        }
        for label in setting.labels:
            for library in _PLANNED:
                by_name[f"{library} {label}"] = partial(_with_plans, setting, label, library)
            for provider in _ONNXRUNTIME_GPU:
                name = f"onnxruntime:{provider} {label}"
                by_name[name] = partial(_on, setting, label, "onnxruntime", provider)
        return by_name
    by_name = {"operators": partial(operators.claims, setting), **exports}
    for label in setting.labels:
        for backend in ("onnxruntime", "openvino"):
            if backend in BACKENDS:
                by_name[f"{backend} {label}"] = partial(_on, setting, label, backend, None)
    return by_name


_PLANNED: tuple[EngineBackend, ...] = ("tensorrt", "tensorrt-rtx")


def _on(setting: Setting, label: str, backend: str, provider: str | None) -> list[Claim]:
    """Return the claims of a bundle on a backend that loads ONNX files."""
    options = BackendOptions(providers=None if provider is None else [provider])

    def opened() -> tuple[Bundle, Backend]:
        return setting.open_bundle(label), open_backend(backend, options)

    return bundle.claims(setting, opened)


def _with_plans(setting: Setting, label: str, backend: EngineBackend) -> list[Claim]:
    """Return the claims of a bundle's plans, and of the bundle on the backend that loads them."""

    def opened() -> tuple[Bundle, Backend]:
        return gpu.planned(setting, label, backend), open_backend(backend)

    return [
        *gpu.engine_claims(setting, label, backend),
        *bundle.claims(setting, opened),
        gpu.graph_claim(setting, label, backend),
    ]


# The precisions that each backend always supports; others depend on the processor or GPU.
_SURE = {
    "onnxruntime": {"fp32", "fp16", "int8"},
    "openvino": {"fp32", "int8"},
    "tensorrt": {"fp32", "fp16", "bf16"},
    "tensorrt-rtx": {"fp32", "fp16", "bf16"},
    **{f"onnxruntime:{provider}": {"fp32", "fp16"} for provider in _ONNXRUNTIME_GPU},
}


def required(setting: Setting, on_gpu: bool) -> list[str]:
    """Return the groups that must run for the self-test to pass: this machine can run them.

    A group needs its backend's packages, a bundle or the packages that export one, and a precision
    that the backend always supports.
    """
    names = ["gpu", "kernels"] if on_gpu else []
    if not on_gpu and is_importable("torch"):
        names.append("operators")
    if setting.bundle is None:
        if not all(map(is_importable, ("torch", "onnx", "onnxscript"))):
            return names
        names.append("export")
    for label in setting.labels:
        types = setting.precisions(label)
        for backend in _installed(setting.architecture) if on_gpu else _installed_for_cpu():
            if types <= _SURE[backend]:
                names.append(f"{backend} {label}")
    return names


def _installed_for_cpu() -> list[str]:
    return [name for name in ("onnxruntime", "openvino") if is_importable(name)]


def _installed(architecture: str) -> list[str]:
    """Return the backends whose packages for a GPU of that architecture are installed."""
    tensorrt = is_importable("tensorrt")
    rtx = is_importable("tensorrt_rtx") and architecture in RTX_ARCHITECTURES
    runtime = installed_version("onnxruntime-gpu") is not None
    adapter = any(installed_version(name) for name in _RTX_ADAPTERS)
    here = {
        "tensorrt": tensorrt,
        "tensorrt-rtx": rtx,
        "onnxruntime:cuda": runtime,
        "onnxruntime:tensorrt": runtime and tensorrt,
        "onnxruntime:tensorrt-rtx": adapter and architecture in RTX_ARCHITECTURES,
    }
    return [name for name, is_here in here.items() if is_here]


class Request(msgspec.Struct, kw_only=True):
    """The group that a child checks, of either kind."""

    setting: Setting
    group: str
    gpu: bool


def check(request: Any, note: Note) -> None:
    """Check a group as a child's job; notes are `{"begin": claim}` and `{"findings": [...]}`."""
    asked = msgspec.convert(request, Request)
    for claim in groups(asked.setting, asked.gpu)[asked.group]():
        note({"begin": claim.name})
        note({"findings": judge(asked.group, claim)})


def describe(_request: Any, _note: Note) -> dict[str, Any]:
    """Describe the GPU as a child's job: `{"device": {...}}`, or `{"missing": reason}`."""
    try:
        return {"device": gpu.describe_device()}
    except DependencyError as error:
        return {"missing": str(error)}
