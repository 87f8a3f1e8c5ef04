"""ONNX Runtime and OpenVINO run the native operators, or the portable forms where asked."""

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from tests.kernels.operands import scan_operands  # noqa: E402
from uino_deploy.export.onnx_writer import register_schemas  # noqa: E402
from uino_deploy.kernels import native  # noqa: E402
from uino_deploy.kernels.correlation import naive as correlation  # noqa: E402
from uino_deploy.kernels.correlation import onnx as correlation_onnx  # noqa: E402
from uino_deploy.kernels.plugins.names import PLUGIN  # noqa: E402
from uino_deploy.kernels.selective_scan import naive as scan  # noqa: E402
from uino_deploy.kernels.selective_scan import onnx as scan_onnx  # noqa: E402
from uino_deploy.runtime.backends import BackendOptions, open_backend  # noqa: E402
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend  # noqa: E402
from uino_deploy.tolerances import OPERATOR, piece_tolerance  # noqa: E402

NUMBERS = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
OPSET = 18


def model_of(name, inputs, function, **attributes):
    """Return a model of one node with its portable function; all its axes are dynamic."""
    register_schemas()
    typed = [
        onnx.helper.make_tensor_value_info(
            key, NUMBERS[str(array.dtype)], [f"{key}{i}" for i in range(array.ndim)]
        )
        for key, array in inputs.items()
    ]
    kind = typed[0].type.tensor_type.elem_type
    node = onnx.helper.make_node(name, list(inputs), ["out"], domain="uino", **attributes, **PLUGIN)
    result = onnx.helper.make_tensor_value_info("out", kind, None)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("uino", 2)]
    graph = onnx.helper.make_graph([node], "one", typed, [result])
    return onnx.helper.make_model(
        graph, functions=[function], opset_imports=opsets, ir_version=10
    ).SerializeToString()


def scanning(dtype="float32"):
    tensors = scan_operands(
        (3, 4, 5, 10, 2, 4), getattr(torch, dtype), torch.Generator().manual_seed(0)
    )
    names = ("x", "packed", "dt_weight", "dt_bias", "A", "skip")
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    wanted = scan.selective_scan2d(*(tensor.double() for tensor in tensors)).numpy()
    function = scan_onnx.portable_function(NUMBERS[dtype], OPSET)
    return model_of("SelectiveScan2d", feeds, function), feeds, wanted


def correlating(dtype="float32", **attributes):
    rng = np.random.default_rng(0)
    grid = {"height": 5, "width": 4, "pool": 3}
    feeds = {
        "query": rng.normal(size=(2, 2, 7, 12)).astype(dtype),
        "support": rng.normal(size=(1, 2, 2, 20, 12)).astype(dtype),
        "weight": rng.uniform(-1, 1, size=(2, 2, 20)).astype(dtype),
    }
    tensors = [torch.from_numpy(array).double() for array in feeds.values()]
    wanted = correlation.correlation4d(*tensors, *grid.values()).numpy()
    function = correlation_onnx.portable_function(*grid.values(), NUMBERS[dtype], OPSET)
    return model_of("Correlation4d", feeds, function, **(grid | attributes)), feeds, wanted


def error(got, wanted):
    assert got.shape == wanted.shape
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


def operators_of(session):
    """Return how often each operator runs in a session."""
    parts = session.get_provider_graph_assignment_info()
    return Counter(node.op_type for part in parts for node in part.get_nodes())


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("make", [scanning, correlating], ids=["scan", "correlation"])
def test_onnxruntime_prefers_the_operator_to_its_function(make, dtype):
    model, feeds, wanted = make(dtype)
    for portable in (False, True):
        backend = OnnxRuntimeBackend(threads=2, portable=portable)
        session = backend.open(model)
        assert error(session.run(None, feeds)[0], wanted) < OPERATOR[dtype].relative_l2
        assert backend.describe()["operators"].startswith("portable" if portable else "native")
        if hasattr(session, "get_provider_graph_assignment_info"):
            names = operators_of(session)
            found = names["SelectiveScan2d"] + names["Correlation4d"]
            assert found == (0 if portable else 1)
            assert portable == (len(names) > 1)


@pytest.mark.parametrize(
    ("make", "name", "change"),
    [
        (scanning, "packed", lambda a: a[..., :9]),
        (scanning, "packed", lambda a: a[:2]),
        (scanning, "skip", lambda a: a[:, :9]),
        (scanning, "x", lambda a: a[0]),
        (correlating, "support", lambda a: a[..., :11]),
        (correlating, "support", lambda a: a[..., :19, :]),
        (correlating, "weight", lambda a: a[:, :1]),
        (correlating, "query", lambda a: np.repeat(a, 2, 0)[:3]),
    ],
)
def test_onnxruntime_refuses_shapes_that_do_not_fit(make, name, change):
    model, feeds, _ = make()
    feeds[name] = np.ascontiguousarray(change(feeds[name]))
    session = OnnxRuntimeBackend(threads=1).open(model)
    with pytest.raises(Exception, match=r"do not fit together|number of dimensions|Invalid rank"):
        session.run(None, feeds)


HUGE = 1 << 62


# The library writes where these numbers say, and a product may overflow to what fits.
@pytest.mark.parametrize(
    "grid",
    [
        {"height": -5, "width": -4},
        {"height": 0},
        {"height": 20, "width": 1 + HUGE},  # in 64 bits their product is 20
        {"pool": 0},
    ],
    ids=str,
)
def test_onnxruntime_refuses_a_grid_that_does_not_fit(grid):
    model, feeds, _ = correlating(**grid)
    session = OnnxRuntimeBackend(threads=1).open(model)
    with pytest.raises(Exception, match="do not fit together"):
        session.run(None, feeds)


def test_a_window_may_be_far_larger_than_the_grid():
    model, feeds, wanted = correlating(pool=2 * HUGE - 1)
    (got,) = OnnxRuntimeBackend(threads=1).open(model).run(None, feeds)
    assert got.shape == (*wanted.shape[:-1], 1)
    assert np.isfinite(got).all()


def feeds_of(bundle):
    rng = np.random.default_rng(0)
    return {
        edge.name: rng.normal(size=[2 if isinstance(d, str) else d for d in edge.shape])
        for edge in bundle.piece("prompt").inputs
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_runs_them_in_a_bundle(exported, precision):
    bundle = exported(precision)
    native_, portable = (
        OnnxRuntimeBackend(threads=2, portable=portable).load(bundle, "prompt")
        for portable in (False, True)
    )
    feeds = feeds_of(bundle)
    wanted = portable.run(feeds)["dense"]
    assert error(native_.run(feeds)["dense"], wanted) < piece_tolerance(precision).relative_l2
    if hasattr(native_._session, "get_provider_graph_assignment_info"):
        counts = operators_of(native_._session)
        assert (counts["Correlation4d"], counts["SelectiveScan2d"], counts["Scan"]) == (1, 4, 0)
        assert operators_of(portable._session)["Scan"] == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_runs_them_in_a_bundle_and_from_its_cache(exported, precision):
    openvino_backend = pytest.importorskip("uino_deploy.runtime.openvino_backend")
    openvino = pytest.importorskip("openvino")
    bundle = exported(precision)
    if precision == "bf16" and "BF16" not in openvino.Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        pytest.skip("this processor does not compute bfloat16")
    feeds = feeds_of(bundle)
    make = openvino_backend.OpenVinoBackend
    wanted = make(2, cache=False, portable=True).load(bundle, "prompt").run(feeds)["dense"]
    fresh, cached = (make(2).load(bundle, "prompt") for _ in range(2))
    got = fresh.run(feeds)["dense"]
    assert error(got, wanted) < piece_tolerance(precision).relative_l2
    assert np.array_equal(cached.run(feeds)["dense"], got)
    for session in (fresh, cached):
        layers = session._last[1].get_compiled_model().get_runtime_model().get_ops()
        kinds = Counter(layer.get_rt_info()["layerType"].value for layer in layers)
        assert kinds["Reference"] == 5
    # In lanes a class has one thread, and models of its own.
    lanes = make(2).load_all(bundle, ["prompt"])["prompt"]
    backend = lanes._backend
    both = backend.each(lambda each: lanes.run(each)["dense"], [feeds, feeds])
    assert all(np.array_equal(one, got) for one in both)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_without_the_library_a_backend_says_so_and_runs(monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setattr(native, "load", lambda: "it was not built")
    native._announce.cache_clear()
    with pytest.warns(UserWarning, match="no native operators"):
        backend = open_backend(name, BackendOptions(threads=1))
    assert backend.describe()["operators"] == "portable"
