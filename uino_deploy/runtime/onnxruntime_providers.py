"""ONNX Runtime's execution providers: selection, availability, and proof that one took the work.

A provider is built into an onnxruntime package, or is a plugin: a separate package with a library
to register. If a provider cannot start, or takes none of a graph's nodes, ONNX Runtime silently
computes everything on the CPU; here that is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from uino_deploy.dependencies import is_importable
from uino_deploy.errors import DependencyError, InputError

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}

# Plugin providers: the module that names the library, and the devices it runs on.
PLUGINS = {
    "OpenVINOExecutionProvider": (
        "onnxruntime_ep_openvino",
        "Intel's CPUs, GPUs and NPUs (--backend openvino takes others' CPUs too)",
    ),
    "NvTensorRTRTXExecutionProvider": (
        "onnxruntime_ep_nv_tensorrt_rtx",
        "NVIDIA's RTX GPUs with their driver",
    ),
}

# Providers that lack some operators, and the provider that should take those before the CPU.
_COMPANY = {"TensorrtExecutionProvider": "CUDAExecutionProvider"}

# Options that a provider gets unless the user sets them: "use_tf32" is on in ONNX Runtime, and
# TF32 is outside fp32's tolerance (onnxruntime.ai, "CUDA Execution Provider", use_tf32).
_DEFAULTS = {"CUDAExecutionProvider": {"use_tf32": "0"}}

# Providers whose libraries may be in separate packages (such as nvidia-cudnn-cu12).
_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

# The operators that take most of the time; one of these on the CPU means no acceleration.
_HEAVY = ("Attention", "Conv", "ConvTranspose", "Gemm", "MatMul")
_RECORD = "session.record_ep_graph_assignment_info"
_STRICT = "session.disable_cpu_ep_fallback"


@dataclass(frozen=True)
class Provider:
    """A provider by ONNX Runtime's name, and its options as text."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


def parse_provider(text: str) -> Provider:
    """Read `NAME[:key=value,...]`; NAME is short, or ONNX Runtime's own.

    Raises:
        InputError: the form is wrong or the name unknown.
    """
    short, colon, listed = text.partition(":")
    name = PROVIDERS.get(short, short)
    if not name.endswith("ExecutionProvider"):
        raise InputError(f"unknown provider {short!r}", f"choose from {', '.join(PROVIDERS)}")
    options = {}
    for pair in listed.split(",") if colon else ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(
                f"provider {text!r}: {pair!r} is not an option", "write NAME:key=value,key=value"
            )
        options[key] = value
    return Provider(name, options)


def select(runtime: ModuleType, providers: Sequence[Provider]) -> Selection:
    """Find providers in this installation.

    Args:
        runtime: the module `onnxruntime`.
        providers: preferred first; the CPU takes the rest.

    Raises:
        DependencyError: a provider is not installed, cannot be loaded, or offers no device.
    """
    built_in = runtime.get_available_providers()
    asked = list(providers)
    company = _COMPANY.get(asked[0].name)
    if company and company in built_in and company not in [one.name for one in asked]:
        asked.append(Provider(company))
    if any(provider.name in built_in and provider.name in _CUDA for provider in asked):
        _load_cuda(runtime)
    devices = {}
    for provider in asked:
        if provider.name in built_in:
            continue
        if provider.name not in PLUGINS or not is_importable(PLUGINS[provider.name][0]):
            raise DependencyError(
                f"the installed onnxruntime {runtime.__version__} has no {provider.name}",
                f"it has {', '.join(built_in)}; {_package_of(provider.name)}",
            )
        devices[provider.name] = plugin_device(runtime, provider.name)
    asked = [Provider(p.name, _DEFAULTS.get(p.name, {}) | p.options) for p in asked]
    if devices and len(asked) > 1:
        raise InputError(
            f"{', '.join(devices)} is a plugin and cannot be combined", "give one provider"
        )
    return Selection(runtime, asked, devices)


def _load_cuda(runtime: ModuleType) -> None:
    """Load CUDA's and cuDNN's libraries from pip's packages, before the first session.

    Otherwise a provider finds only the system's own (onnxruntime.ai, "Install ONNX Runtime",
    "Preload DLLs"; since 1.21). It prints failures to stdout, which belongs to our commands.
    """
    if hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):
            runtime.preload_dlls()


def plugin_device(runtime: ModuleType, name: str) -> Any:
    """Register a plugin provider and return its first device on this machine.

    Raises:
        DependencyError: its library cannot be loaded, or it offers no device.
    """
    module, where = PLUGINS[name]
    if not _devices(runtime, name):
        try:
            library = importlib.import_module(module).get_library_path()
            runtime.register_execution_provider_library(name, library)
        # ONNX Runtime's exceptions have no common base but Exception.
        except Exception as error:
            if "already registered" not in str(error):
                raise DependencyError(
                    f"{module} cannot be loaded: {_reason(error)}", f"it needs {where}"
                ) from error
    devices = _devices(runtime, name)
    if not devices:
        raise DependencyError(
            f"{module} is installed but offers no device on this machine",
            f"it needs {where}; use another provider or backend",
        )
    return devices[0]


class Selection:
    """Available providers, ready for sessions."""

    def __init__(
        self, runtime: ModuleType, providers: list[Provider], devices: dict[str, Any]
    ) -> None:
        self._runtime = runtime
        self._providers = providers
        self._devices = devices

    @property
    def first(self) -> str:
        """ONNX Runtime's name of the provider that must run the pieces."""
        return self._providers[0].name

    def open(self, graph: object, options: onnxruntime.SessionOptions) -> Any:
        """Create a session on these providers, without ONNX Runtime's silent fallback."""
        session = self._runtime.InferenceSession
        if hasattr(session, "get_provider_graph_assignment_info"):
            options.add_session_config_entry(_RECORD, "1")
        elif CPU not in [provider.name for provider in self._providers]:
            options.add_session_config_entry(_STRICT, "1")
        if self._devices:
            (device,) = self._devices.values()
            options.add_provider_for_devices([device], self._providers[0].options)
            return session(graph, options, enable_fallback=0)
        named = [(provider.name, provider.options) for provider in self._providers]
        return session(graph, options, providers=named, enable_fallback=0)

    def check(self, session: onnxruntime.InferenceSession, piece: str) -> None:
        """Refuse a session in which the CPU does the first provider's work.

        Raises:
            DependencyError: the provider did not start, took no node of the graph, or left
                matrix products or convolutions to the CPU.
        """
        running = session.get_providers()[0]
        advice = "see `uino-deploy doctor`, or use --provider cpu"
        if running != self.first:
            raise DependencyError(
                f"onnxruntime could not start {self.first} and fell back to {running}", advice
            )
        if self.first == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
            return
        nodes = assignment(session)
        if not nodes.get(self.first):
            raise DependencyError(f"{self.first} took no node of piece {piece}", advice)
        left = nodes.get(CPU, Counter())
        heavy = [f"{left[kind]} {kind}" for kind in _HEAVY if left[kind]]
        if heavy and CPU not in [provider.name for provider in self._providers]:
            raise DependencyError(
                f"{self.first} left {', '.join(heavy)} of piece {piece} to the CPU", advice
            )


def assignment(session: onnxruntime.InferenceSession) -> dict[str, Counter[str]]:
    """Return the number of nodes of each operator that each provider took."""
    nodes: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        taken = nodes.setdefault(part.ep_name, Counter())
        taken.update(node.op_type for node in part.get_nodes())
    return nodes


def probe(runtime: ModuleType) -> dict[str, str]:
    """Return short provider name -> "" if it is available, else the reason why not.

    A listed built-in provider may still fail to start, which shows only with a piece.
    """
    missing = {}
    for short, name in PROVIDERS.items():
        try:
            select(runtime, [Provider(name)])
            missing[short] = ""
        except DependencyError as error:
            missing[short] = str(error)
    return missing


def _devices(runtime: ModuleType, name: str) -> list[Any]:
    # Plugins exist since ONNX Runtime 1.23, with its list of devices.
    if not hasattr(runtime, "get_ep_devices"):
        raise DependencyError(
            f"onnxruntime {runtime.__version__} has no plugin providers", "install a newer one"
        )
    return [device for device in runtime.get_ep_devices() if device.ep_name == name]


def _reason(error: Exception) -> str:
    """Return the end of ONNX Runtime's message, which holds the reason."""
    return str(error).strip().splitlines()[0].rpartition("with error: ")[2]


def _package_of(name: str) -> str:
    package = {
        **dict.fromkeys(_CUDA, "pip install onnxruntime-gpu[cuda,cudnn] instead of onnxruntime"),
        "OpenVINOExecutionProvider": "pip install onnxruntime-ep-openvino",
        "NvTensorRTRTXExecutionProvider": "pip install onnxruntime-ep-nv-tensorrt-rtx",
    }
    return package.get(name, "install the onnxruntime package that has it")
