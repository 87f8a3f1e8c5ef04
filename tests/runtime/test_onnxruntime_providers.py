"""A provider is found, given its options, and refused if the CPU would do its work."""

import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from uino_deploy.bundle import Bundle
from uino_deploy.errors import DependencyError, InputError
from uino_deploy.runtime import onnxruntime_providers as providers
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.runtime.onnxruntime_providers import Provider, parse_provider, probe, select

OPENVINO = "OpenVINOExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"


@pytest.fixture
def bundle(fake_bundle):
    return Bundle.open(fake_bundle)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("cpu", "CPUExecutionProvider", {}),
        (
            "cuda:device_id=1,enable_cuda_graph=1",
            "CUDAExecutionProvider",
            {"device_id": "1", "enable_cuda_graph": "1"},
        ),
        ("tensorrt:trt_engine_cache_path=/a=b", "TensorrtExecutionProvider", None),
        ("XnnpackExecutionProvider", "XnnpackExecutionProvider", {}),
    ],
)
def test_a_provider_is_a_name_and_options(text, name, options):
    found = parse_provider(text)
    assert found.name == name
    assert found.options == ({"trt_engine_cache_path": "/a=b"} if options is None else options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "unknown provider 'gpu'; choose from cpu, cuda"),
        ("cuda:device_id", "'device_id' is not an option"),
        ("cuda:", "'' is not an option"),
        ("cuda:=1", "'=1' is not an option"),
    ],
)
def test_a_provider_that_cannot_be_read(text, words):
    with pytest.raises(InputError, match=words):
        parse_provider(text)


def test_options_reach_onnxruntime_and_are_checked_by_it(bundle):
    assert OnnxRuntimeBackend(["cpu:use_arena=0"]).load(bundle, "adapter")
    seen = []
    runtime = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=lambda *given, **named: seen.append((given, named)),
    )
    options = onnxruntime.SessionOptions()
    select(runtime, [Provider("CUDAExecutionProvider", {"device_id": "1"})]).open("graph", options)
    (given, named) = seen[0]
    assert given == ("graph", options)
    assert named == {
        "providers": [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})],
        "enable_fallback": 0,
    }


def cuda_runtime(calls):
    """ONNX Runtime with CUDA, as of 1.21: `calls` gets its functions' names in their order."""

    def session(*_given, **named):
        calls.append("InferenceSession")
        return named["providers"]

    def preload():
        calls.append("preload_dlls")
        sys.stdout.write("Failed to load libcudart.so.13: no such file\n")  # by print, in 1.32

    return SimpleNamespace(
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
        preload_dlls=preload,
        InferenceSession=session,
    )


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_cudas_libraries_are_loaded_before_the_first_session(name, capsys):
    calls = []
    selection = select(cuda_runtime(calls), [parse_provider(name)])
    opened = selection.open("graph", onnxruntime.SessionOptions())
    assert calls == ["preload_dlls", "InferenceSession"]
    assert opened[-1] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "libcudart" in captured.err


def test_nothing_of_cuda_is_loaded_for_other_providers():
    calls = []
    runtime = cuda_runtime(calls)
    runtime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    select(runtime, [parse_provider("cpu")])
    assert calls == []


def test_tf32_can_be_asked_for():
    selection = select(cuda_runtime([]), [parse_provider("cuda:use_tf32=1")])
    opened = selection.open("graph", onnxruntime.SessionOptions())
    assert opened == [("CUDAExecutionProvider", {"use_tf32": "1"})]


def test_onnxruntime_has_what_is_called_of_it():
    assert callable(onnxruntime.preload_dlls)


def test_the_gpu_extra_brings_the_libraries():
    """The names of onnxruntime-gpu's own extras: its metadata's Provides-Extra."""
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"onnxruntime-gpu[cuda,cudnn]>=' in project


def test_tensorrt_leaves_the_rest_to_cuda_where_that_is_there(bundle):
    runtime = SimpleNamespace(
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
        InferenceSession=lambda *_given, **named: named["providers"],
    )
    selection = select(runtime, [Provider("TensorrtExecutionProvider")])
    opened = selection.open("graph", onnxruntime.SessionOptions())
    assert [name for name, _ in opened] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


def test_a_provider_that_takes_no_node_is_refused(bundle):
    # It is listed first by `get_providers`, and everything runs on the CPU.
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no AzureExecutionProvider")
    backend = OnnxRuntimeBackend(["AzureExecutionProvider"])
    # An onnxruntime that tells no assignment refuses by itself, in other words.
    words = "took no node of piece encoder|cannot load piece encoder with Azure"
    with pytest.raises(DependencyError, match=words) as caught:
        backend.load(bundle, "encoder")
    assert caught.value.exit_code == 3


def session_of(**nodes):
    """Return a session whose providers took operators: `session_of(CUDA=["MatMul"], CPU=[])`."""
    parts = [
        SimpleNamespace(
            ep_name=f"{name}ExecutionProvider",
            get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind) for kind in kinds],
        )
        for name, kinds in nodes.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [part.ep_name for part in parts],
        get_provider_graph_assignment_info=lambda: parts,
    )


def selection_of(*names):
    return providers.Selection(onnxruntime, [Provider(name) for name in names], {})


def test_shapes_may_run_on_the_cpu_and_products_may_not():
    cuda = selection_of("CUDAExecutionProvider")
    cuda.check(session_of(CUDA=["MatMul", "Conv"], CPU=["Shape", "Gather"]), "prompt")
    with pytest.raises(DependencyError, match="left 1 Conv, 2 MatMul of piece prompt to the CPU"):
        cuda.check(session_of(CUDA=["Add"], CPU=["MatMul", "Conv", "MatMul"]), "prompt")


def test_products_may_run_on_the_cpu_where_it_was_named():
    both = selection_of("CUDAExecutionProvider", "CPUExecutionProvider")
    both.check(session_of(CUDA=["Add"], CPU=["MatMul"]), "prompt")
    with pytest.raises(DependencyError, match="took no node"):
        both.check(session_of(CUDA=[], CPU=["MatMul"]), "prompt")


def test_an_onnxruntime_that_tells_no_assignment_is_asked_to_be_strict():
    class Session:
        def __init__(self, _graph, options, **_named):
            self.strict = options.get_session_config_entry("session.disable_cpu_ep_fallback")

    runtime = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider"], InferenceSession=Session
    )
    selection = select(runtime, [Provider("CUDAExecutionProvider")])
    assert selection.open("graph", onnxruntime.SessionOptions()).strict == "1"


# --- plugin providers


class Library:
    """An onnxruntime into which a plugin's library can be registered."""

    __version__ = "1.32.0"

    def __init__(self, name, devices=1, error=""):
        self.name, self.count, self.error = name, devices, error
        self.registered = []

    def get_available_providers(self):
        return ["CPUExecutionProvider"]

    def register_execution_provider_library(self, name, path):
        self.registered.append((name, path))
        if self.error:
            raise RuntimeError(self.error)

    def get_ep_devices(self):
        count = self.count if self.registered else 0
        return [SimpleNamespace(ep_name=self.name, index=index) for index in range(count)]

    @staticmethod
    def InferenceSession(_graph, options, **named):
        return options.added, named


@pytest.fixture
def plugin(monkeypatch):
    """Install a module that names a plugin's library."""

    def install(name):
        module = providers.PLUGINS[name][0]
        stub = SimpleNamespace(get_library_path=lambda: "plugin.so")
        monkeypatch.setitem(sys.modules, module, stub)
        monkeypatch.setattr(providers, "is_importable", lambda asked: asked == module)

    return install


def test_a_plugin_is_registered_once_and_runs_on_its_first_device(plugin):
    plugin(OPENVINO)
    runtime = Library(OPENVINO, devices=2)
    options = SimpleNamespace(add_session_config_entry=lambda *_entry: None)
    options.add_provider_for_devices = lambda *given: setattr(options, "added", given)
    for _ in range(2):
        selection = select(runtime, [Provider(OPENVINO, {"device_type": "CPU"})])
    assert runtime.registered == [(OPENVINO, "plugin.so")]
    (devices, given), named = selection.open("graph", options)
    assert [device.index for device in devices] == [0]
    assert given == {"device_type": "CPU"}
    assert named == {"enable_fallback": 0}
    with pytest.raises(InputError, match="cannot be combined"):
        select(runtime, [Provider(OPENVINO), Provider("CPUExecutionProvider")])


def test_a_plugin_without_a_device_says_where_it_runs(plugin):
    plugin(OPENVINO)
    with pytest.raises(DependencyError, match=r"offers no device on this machine; it needs Intel"):
        select(Library(OPENVINO, devices=0), [Provider(OPENVINO)])


def test_a_plugin_whose_library_does_not_load(plugin):
    plugin(RTX)
    error = "FAIL : Failed to load library a.so with error: libcuda.so.1: no such file\nmore"
    with pytest.raises(DependencyError, match=r"loaded: libcuda\.so\.1: no such file; it needs NV"):
        select(Library(RTX, error=error), [Provider(RTX)])


def test_a_plugin_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(providers, "is_importable", lambda _module: False)
    with pytest.raises(DependencyError, match=r"has no NvTensor.*pip install onnxruntime-ep-nv-"):
        select(Library(RTX), [Provider(RTX)])


def test_probing_says_what_each_provider_lacks(monkeypatch):
    monkeypatch.setattr(providers, "is_importable", lambda _module: False)
    found = probe(onnxruntime)
    assert list(found) == list(providers.PROVIDERS)
    assert found["cpu"] == ""
    assert "onnxruntime-gpu" in found["cuda"]
    assert "onnxruntime-ep-openvino" in found["openvino"]
