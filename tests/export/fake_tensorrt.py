"""A stand-in for TensorRT and cuda-python: records what the engine job asks of them.

It shows the order of the calls and what is done with their answers. That TensorRT has these names,
the contract tests show. What it says and how it behaves was found in the real things:

- `LayerType.PLUGIN_V3` is the type of a plugin's layer, and a layer has its node's name: the
  bindings of 10.3 to 11.4 (test_names.py), and onnx-tensorrt's registerLayer; tensorrt-rtx's parser
  names layers so too.
- Where C++ returns null the bindings raise TypeError, "factory function returned nullptr": those of
  11.4 over a stub (test_names.py). `add_optimization_profile` returns -1 for a profile that it does
  not take (NvInfer.h, IBuilderConfig::addOptimizationProfile).
- TF32 is on in a new builder configuration: tensorrt-rtx 1.7.1, whose builder runs without a GPU.
"""

from __future__ import annotations

import enum
import json
from types import SimpleNamespace
from typing import Any


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING


class IProgressMonitor:
    pass


class LayerType(enum.Enum):
    CONSTANT = 0
    CAST = 1
    CONVOLUTION = 2
    PLUGIN_V3 = 3


class Flags(enum.Enum):
    STRONGLY_TYPED = 1

    def __int__(self) -> int:
        return self.value


class BuilderFlag(enum.Enum):
    TF32 = 7


class FakeTensorrt:
    """The module; `asked` holds what was asked of it."""

    ILogger, IProgressMonitor, LayerType = ILogger, IProgressMonitor, LayerType
    NetworkDefinitionCreationFlag, BuilderFlag = Flags, BuilderFlag
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, version: str = "10.13.3.9") -> None:
        self.__version__ = version
        self.asked: dict[str, Any] = {}
        self.parses = True
        self.builds = True
        self.loads = True
        self.accepts_timings = True
        self.accepts_profile = True
        self.missing = ""  # what C++ returns null for

    def _make(self, kind: str) -> None:
        if self.missing == kind:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def Builder(self, log: Any) -> Any:
        self._make("Builder")
        self.log = log
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=self._build,
        )

    def _network(self, flags: int) -> Any:
        self.asked["flags"] = flags
        kinds = [LayerType.CONSTANT, LayerType.CONVOLUTION, LayerType.PLUGIN_V3]
        output = SimpleNamespace(dtype=SimpleNamespace(name="HALF"))
        layers = [
            SimpleNamespace(name=name, type=k, num_outputs=1, get_output=lambda _: output)
            for name, k in zip(["w", "node_conv", "node_correlation4d"], kinds, strict=True)
        ]
        self.input = SimpleNamespace(name="early", shape=(-1, 4))
        return SimpleNamespace(
            num_layers=len(layers),
            get_layer=layers.__getitem__,
            num_inputs=1,
            get_input=lambda _index: self.input,
        )

    def OnnxParser(self, _network: Any, log: Any) -> Any:
        self._make("OnnxParser")

        def parse(data: bytes, path: str) -> bool:
            self.asked["parse"] = (data, path)
            return self.parses

        def parse_from_file(path: str) -> bool:
            self.asked["parse_from_file"] = path
            return self.parses

        error = SimpleNamespace(
            node_operator=lambda: "Conv", node_name=lambda: "node_1", desc=lambda: "type mismatch"
        )
        return SimpleNamespace(
            parse=parse,
            parse_from_file=parse_from_file,
            num_errors=1,
            get_error=lambda _: error,
        )

    def _profile(self) -> Any:
        shapes = self.asked.setdefault("shapes", {})
        return SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}))

    def _config(self) -> Any:
        def set_timing_cache(cache: Any, ignore_mismatch: bool) -> bool:
            self.asked["timings"] = (cache, ignore_mismatch)
            return self.accepts_timings

        self.flags = {BuilderFlag.TF32}
        self.config = SimpleNamespace(
            clear_flag=self.flags.discard,
            set_memory_pool_limit=lambda pool, size: self.asked.update({pool: size}),
            add_optimization_profile=lambda _profile: 0 if self.accepts_profile else -1,
            create_timing_cache=lambda data: data,
            set_timing_cache=set_timing_cache,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"extended"),
        )
        return self.config

    def _build(self, _network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Inner", "Building engine", 9)
        monitor.step_complete("Inner", 0)
        monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        self.log.log(Severity.WARNING, "a warning")
        if not self.builds:
            self.log.log(Severity.ERROR, "Could not find any implementation for node gemm")
            return None
        return b"a plan"

    def Runtime(self, _log: Any) -> Any:
        self._make("Runtime")
        text = json.dumps({"Layers": [], "Bindings": []})
        inspector = SimpleNamespace(get_engine_information=lambda _format: text)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda _p: engine if self.loads else None)


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


def fake_cuda(major: int = 8, minor: int = 7, status: Status = Status.cudaSuccess) -> Any:
    """Return cuda-python's runtime API with one GPU."""
    properties = SimpleNamespace(name=b"Orin", major=major, minor=minor)
    return SimpleNamespace(
        cudaGetDeviceProperties=lambda _device: (status, properties),
        cudaDriverGetVersion=lambda: (status, 12060),
        cudaRuntimeGetVersion=lambda: (status, 12060),
    )
