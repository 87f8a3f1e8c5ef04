"""Our operators as OpenVINO runs them, against their float64 definition."""

import numpy as np
import onnx
import pytest
import torch

openvino = pytest.importorskip("openvino")

from uino_deploy.kernels.correlation import naive as correlation  # noqa: E402
from uino_deploy.kernels.selective_scan import naive as scan  # noqa: E402
from uino_deploy.runtime import openvino_backend  # noqa: E402
from uino_deploy.tolerances import OPERATOR  # noqa: E402

TYPES = {"float32": onnx.TensorProto.FLOAT, "bfloat16": onnx.TensorProto.BFLOAT16}


def run(folder, node, feeds, dtype, rest=()):
    """Run one node of ours in OpenVINO; float32 outside, `dtype` in all but its last inputs."""
    inputs, cast, names = [], [], []
    for name, array in feeds.items():
        inputs.append(onnx.helper.make_tensor_value_info(name, 1, array.shape))
        inner = name if name in rest else f"{name}_cast"
        names.append(inner)
        if name not in rest:
            cast.append(onnx.helper.make_node("Cast", [name], [inner], to=TYPES[dtype]))
    node.input.extend(names)
    after = [onnx.helper.make_node("Cast", ["out"], ["result"], to=1)]
    output = onnx.helper.make_tensor_value_info("result", 1, None)
    graph = onnx.helper.make_graph([*cast, node, *after], "one", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("uino", 2)]
    path = folder / "one.onnx"
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    model = openvino_backend._read(path, {n: a.shape for n, a in feeds.items()})
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    return next(iter(compiled(feeds).values()))


def rounded(array, dtype):
    return torch.from_numpy(array).to(getattr(torch, dtype)).double()


def error(got, wanted):
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


SHAPES = {
    "few long sequences": (3, 5, 7, 8, 2, 4),
    "many short ones": (74, 3, 2, 16, 3, 4),
    "a prime number of sequences": (67, 4, 4, 8, 2, 2),
    "one step": (2, 1, 1, 4, 2, 1),
    "one row": (2, 1, 6, 4, 2, 3),
}


def operands(shape, seed=0):
    S, H, W, D, R, N = shape
    rng = np.random.default_rng(seed)
    drawn = {
        "x": rng.normal(size=(S, H, W, D)),
        "packed": rng.normal(size=(S, H, W, 4, R + 2 * N + 3)),
        "dt_weight": rng.normal(size=(4, D, R)),
        "dt_bias": rng.normal(size=(4, D)) - 2,
        "A": -np.exp(rng.normal(size=(4, D, N))),
        "skip": rng.normal(size=(4, D)),
    }
    return {name: array.astype(np.float32) for name, array in drawn.items()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", TYPES)
def test_selective_scan(tmp_path, shape, dtype):
    feeds = operands(shape)
    weights = ("dt_weight", "dt_bias", "A", "skip")
    node = onnx.helper.make_node("SelectiveScan2d", [], ["out"], domain="uino")
    got = run(tmp_path, node, feeds, dtype, weights)
    exact = [
        torch.from_numpy(a).double() if name in weights else rounded(a, dtype)
        for name, a in feeds.items()
    ]
    wanted = scan.selective_scan2d(*exact).numpy()
    assert got.shape == wanted.shape
    assert error(got, wanted) < OPERATOR[dtype].relative_l2


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("batch", "shared"), [(1, 1), (2, 1), (2, 2)])
def test_correlation(tmp_path, dtype, batch, shared):
    rng = np.random.default_rng(3)
    height, width, pool = 5, 7, 3
    feeds = {
        "query": rng.normal(size=(batch, 2, 6, 12)).astype(np.float32),
        "support": rng.normal(size=(shared, 3, 2, height * width, 12)).astype(np.float32),
        "weight": rng.uniform(-1, 1, size=(shared, 3, height * width)).astype(np.float32),
    }
    node = onnx.helper.make_node(
        "Correlation4d", [], ["out"], domain="uino", height=height, width=width, pool=pool
    )
    got = run(tmp_path, node, feeds, dtype)
    exact = [rounded(array, dtype) for array in feeds.values()]
    wanted = correlation.correlation4d(*exact, height, width, pool).numpy()
    assert got.shape == wanted.shape
    assert error(got, wanted) < OPERATOR[dtype].relative_l2
