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
from uino_deploy.selftest import bundle, gpu, operator_engines, operators
from uino_deploy.selftest.findings import Claim, judge
from uino_deploy.selftest.setting import Setting

Group = Callable[[], list[Claim]]

_ONNXRUNTIME_GPU = ("cuda", "tensorrt", "tensorrt-rtx")
_RTX_ADAPTERS = ("onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime-ep-nv-tensorrt-rtx-cu13")


def groups(setting: Setting, on_gpu: bool) -> dict[str, Group]:
    """Return, for each group, the function that creates its claims, in the order of checking.

    A group is one kind of claim, or one bundle on one backend; each has its own process. What
    proves most comes first, since the time may not suffice for all: faults and the operators, then
    the pieces and the whole on every backend, then their speed.
    """
    exports = {"export": partial(bundle.export_claims, setting)} if setting.bundle is None else {}
    found: dict[str, Group]
    right: dict[str, Group] = {}
    speed: dict[str, Group] = {}
    for name, opener in _openers(setting, on_gpu).items():
        right[name] = partial(bundle.claims, setting, opener)
        speed[f"{name} speed"] = partial(bundle.speed_claims, opener)
    if not on_gpu:
        return {"operators": partial(operators.claims, setting), **exports, **right, **speed}
    found = {"gpu": gpu.device_claims, "kernels": partial(gpu.kernel_claims, setting)}
    for library in _PLANNED:
        found[f"{library} operators"] = partial(operator_engines.claims, setting, library)
        for label in setting.labels:
            plans = partial(_with_plans, setting, label, library, right[f"{library} {label}"])
            right[f"{library} {label}"] = plans
    return {**found, **exports, **right, **speed}


_PLANNED: tuple[EngineBackend, ...] = ("tensorrt", "tensorrt-rtx")


def _openers(setting: Setting, on_gpu: bool) -> dict[str, bundle.Open]:
    """Return what opens each of the run's bundles on each backend, by the group's name."""
    found: dict[str, bundle.Open] = {}
    for label in setting.labels:
        if on_gpu:
            for library in _PLANNED:
                found[f"{library} {label}"] = partial(_open_plans, setting, label, library)
            for provider in _ONNXRUNTIME_GPU:
                opened = partial(_open, setting, label, "onnxruntime", [provider])
                found[f"onnxruntime:{provider} {label}"] = opened
        else:
            for backend in ("onnxruntime", "openvino"):
                if backend in BACKENDS:
                    found[f"{backend} {label}"] = partial(_open, setting, label, backend, None)
    return found


def _open(
    setting: Setting, label: str, backend: str, providers: list[str] | None
) -> tuple[Bundle, Backend]:
    """Open a bundle, and a backend that loads ONNX files."""
    return setting.open_bundle(label), open_backend(backend, BackendOptions(providers=providers))


def _open_plans(setting: Setting, label: str, library: EngineBackend) -> tuple[Bundle, Backend]:
    """Open a bundle with plans, and the backend that loads them."""
    return gpu.planned(setting, label, library), open_backend(library)


def _with_plans(setting: Setting, label: str, library: EngineBackend, right: Group) -> list[Claim]:
    """Return the claims of a bundle's plans, and of the bundle on the backend that loads them."""
    return [
        *gpu.engine_claims(setting, label, library),
        *right(),
        gpu.graph_claim(setting, label, library),
    ]


# The precisions that each backend always supports; others depend on the processor or GPU.
_SURE = {
    "onnxruntime": {"fp32", "fp16", "int8", "fp8"},
    "openvino": {"fp32", "int8", "fp8"},
    "tensorrt": {"fp32", "fp16", "bf16"},
    "tensorrt-rtx": {"fp32", "fp16", "bf16"},
    **{f"onnxruntime:{provider}": {"fp32", "fp16"} for provider in _ONNXRUNTIME_GPU},
}


def required(setting: Setting, on_gpu: bool) -> list[str]:
    """Return the groups that must run for the self-test to pass: this machine can run them.

    Needed are a backend's packages, a bundle or what exports one, and a precision that the backend
    computes everywhere; for an engine of one operator, onnx.
    """
    if on_gpu:
        installed = _installed(setting.architecture)
        alone = [f"{library} operators" for library in _PLANNED if library in installed]
        found = ["gpu", "kernels", *(alone if is_importable("onnx") else [])]
    else:
        installed = _installed_for_cpu()
        found = ["operators"] if is_importable("torch") else []
    if setting.bundle is None:
        if not all(map(is_importable, ("torch", "onnx", "onnxscript"))):
            return found
        found.append("export")
    pairs = [(backend, label) for label in setting.labels for backend in installed]
    on = [f"{b} {label}" for b, label in pairs if setting.precisions(label) <= _SURE[b]]
    return [*found, *on, *(f"{name} speed" for name in on)]


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
