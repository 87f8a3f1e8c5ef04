"""The groups of claims by name, and the process that checks one of them.

The process is told a setting and a group on stdin, and writes a JSON document a line: the claims'
names, then for each claim that it begins and what came of it. Whatever a library prints goes to
stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.plans import EngineBackend
from uino_deploy.errors import DependencyError
from uino_deploy.runtime.backends import BACKENDS, BackendOptions, open_backend
from uino_deploy.runtime.session import Backend
from uino_deploy.selftest import gpu, operators, pieces
from uino_deploy.selftest.findings import Claim, judge
from uino_deploy.selftest.setting import Setting

Group = Callable[[], list[Claim]]

_ONNXRUNTIME_GPU = ("cuda", "tensorrt", "tensorrt-rtx")


def groups(setting: Setting, on_gpu: bool) -> dict[str, Group]:
    """Return what makes the claims of each group, in the order in which they are checked.

    A group is one kind of claim, or one bundle on one backend; each has its own process.
    """
    exports = {"export": partial(pieces.export_claims, setting)} if setting.bundle is None else {}
    if on_gpu:
        found: dict[str, Group] = {
            "gpu": gpu.device_claims,
            "kernels": partial(gpu.kernel_claims, setting),
            **exports,
        }
        for label in setting.labels:
            for library in _PLANNED:
                found[f"{library} {label}"] = partial(_with_plans, setting, label, library)
            for provider in _ONNXRUNTIME_GPU:
                name = f"onnxruntime:{provider} {label}"
                found[name] = partial(_on, setting, label, "onnxruntime", provider)
        return found
    found = {"operators": partial(operators.claims, setting), **exports}
    for label in setting.labels:
        for backend in ("onnxruntime", "openvino"):
            if backend in BACKENDS:
                found[f"{backend} {label}"] = partial(_on, setting, label, backend, None)
    return found


_PLANNED: tuple[EngineBackend, ...] = ("tensorrt", "tensorrt-rtx")


def _on(setting: Setting, label: str, backend: str, provider: str | None) -> list[Claim]:
    """Return the claims of a bundle on a backend that loads ONNX files."""
    options = BackendOptions(providers=None if provider is None else [provider])

    def opened() -> tuple[Bundle, Backend]:
        return setting.open_bundle(label), open_backend(backend, options)

    return pieces.claims(setting, opened)


def _with_plans(setting: Setting, label: str, backend: EngineBackend) -> list[Claim]:
    """Return the claims of a bundle's plans, and of the bundle on the backend that loads them."""

    def opened() -> tuple[Bundle, Backend]:
        return gpu.planned(setting, label, backend), open_backend(backend)

    return [
        *gpu.engine_claims(setting, label, backend),
        *pieces.claims(setting, opened),
        gpu.graph_claim(setting, label, backend),
    ]


class Request(msgspec.Struct, kw_only=True):
    """What a process is asked: to check a group of either kind, or with "" to describe the GPU."""

    setting: Setting
    group: str
    gpu: bool = False


def main() -> None:
    """Answer the request on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(document: dict[str, Any]) -> None:
        answers.write(msgspec.json.encode(document).decode() + "\n")
        answers.flush()

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    if not request.group:
        try:
            say({"device": gpu.describe_device()})
        except DependencyError as error:
            say({"missing": str(error)})
        return
    claims = groups(request.setting, request.gpu)[request.group]()
    say({"claims": [claim.name for claim in claims]})
    for claim in claims:
        say({"begin": claim.name})
        say({"findings": judge(request.group, claim)})


if __name__ == "__main__":
    main()
