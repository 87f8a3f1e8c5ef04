"""Every runner by name: the product's backends, and the peers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from uino_deploy.benchmarks.runners.runner import Runner, Task
from uino_deploy.errors import InputError


@dataclass(frozen=True)
class Peer:
    """Another way to run the model.

    Attributes:
        title: its name in pages and tables.
        precision: its arithmetic.
        target: its runner as "module:class".
    """

    title: str
    precision: str
    target: str


_TORCH = "uino_deploy.benchmarks.runners.torch_model"
_WHOLE = "uino_deploy.benchmarks.runners.whole_onnx"

PEERS = {
    "torch": Peer("PyTorch eager fp32", "fp32", f"{_TORCH}:PlainTorchRunner"),
    "torch-bf16": Peer("PyTorch eager bf16", "bf16", f"{_TORCH}:PlainTorchRunner"),
    "compile": Peer("torch.compile fp32", "fp32", f"{_TORCH}:CompiledRunner"),
    "compile-bf16": Peer("torch.compile bf16", "bf16", f"{_TORCH}:CompiledRunner"),
    "onnx": Peer("plain ONNX, ONNX Runtime fp32", "fp32", f"{_WHOLE}:WholeOnnxRuntimeRunner"),
    "onnx-openvino": Peer("plain ONNX, OpenVINO fp32", "fp32", f"{_WHOLE}:WholeOpenVinoRunner"),
    "onnx-openvino-bf16": Peer(
        "plain ONNX, OpenVINO bf16", "bf16", f"{_WHOLE}:WholeOpenVinoRunner"
    ),
}

REFERENCE = "reference"
_REFERENCE_TARGET = f"{_TORCH}:TorchRunner"
_BUNDLE_TARGET = "uino_deploy.benchmarks.runners.bundle:BundleRunner"


def peers_named(names: str) -> list[str]:
    """Read `--peers`: "none", "all", or a comma-separated list of names of `PEERS`.

    Raises:
        InputError: an unknown name.
    """
    if names in {"none", ""}:
        return []
    if names == "all":
        return list(PEERS)
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in PEERS:
            raise InputError(f"unknown peer {name!r}", f"choose from {', '.join(PEERS)}, all, none")
    return list(dict.fromkeys(asked))


def make_runner(task: Task) -> Runner[Any]:
    """Create the runner that a task names, in this process.

    Raises:
        DependencyError: a package that it needs is not installed.
        BundleError: the bundle is damaged.
    """
    if task.runner == REFERENCE:
        target = _REFERENCE_TARGET
    elif task.runner in PEERS:
        target = PEERS[task.runner].target
    else:
        target = _BUNDLE_TARGET
    module, name = target.split(":")
    runner: Runner[Any] = getattr(import_module(module), name)(task)
    return runner
