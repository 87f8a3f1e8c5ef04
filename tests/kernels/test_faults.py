"""A NaN or an infinity in an operand shows in every form where the reference shows it."""

import numpy as np
import onnx
import pytest
import torch

from tests.kernels.executor import run
from uino_deploy.kernels.compiler.build import compile_variants
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape
from uino_deploy.kernels.compiler.targets import capability_of, oldest_cuda, target
from uino_deploy.kernels.compiler.variants import (
    correlation_variant,
    grid_of,
    scalars_of,
    scan1d_variant,
    scan_variant,
)
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.correlation import onnx as correlation_onnx
from uino_deploy.kernels.correlation import triton_kernel as correlation_triton
from uino_deploy.kernels.selective_scan import naive as scan
from uino_deploy.kernels.selective_scan import onnx as scan_onnx
from uino_deploy.kernels.selective_scan import triton_kernel as scan_triton
from uino_deploy.kernels.selective_scan import triton_kernel_1d as scan1d_triton
from uino_deploy.kernels.selective_scan.tiling import Tiling
from uino_deploy.tolerances import OPERATOR

# numpy, in the interpreter, warns of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

NAN, INF = float("nan"), float("inf")
HALF = "float16"
DTYPES = list(OPERATOR)


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def same_faults(got, expected):
    """Compare where NaN and each infinity stand; return the finite rest's relative error."""
    got, expected = torch.as_tensor(np.asarray(got.double())), expected.double()
    assert expected.isnan().any() or expected.isinf().any(), "the fault does not reach the output"
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())
    finite = expected.isfinite()
    assert finite.any()
    return float((got - expected)[finite].norm() / expected[finite].norm())


def close(got, expected, dtype):
    assert same_faults(got, expected) <= OPERATOR[dtype].relative_l2


# --- Correlation4d: (operand, index of the element, value)

GRID = (5, 7)
TOKENS = {
    "query NaN": (0, (0, 1, 3, 2), NAN),
    "query inf": (0, (0, 0, 4, 1), INF),
    "query -inf": (0, (0, 1, 4, 0), -INF),
    "support NaN": (1, (0, 0, 1, 9, 3), NAN),
    "support inf": (1, (0, 1, 0, 16, 0), INF),
    "support -inf": (1, (0, 1, 1, 34, 5), -INF),
    "weight NaN": (2, (0, 1, 11), NAN),
}
token_faults = pytest.mark.parametrize("fault", TOKENS.values(), ids=TOKENS)


def tokens(dtype, fault):
    query, support = draw(1, 2, 6, 16, seed=1), draw(1, 2, 2, 35, 16, seed=2)
    tensors = [t.to(getattr(torch, dtype)) for t in (query, support, draw(1, 2, 35, seed=3))]
    operand, index, value = fault
    tensors[operand][index] = value
    return tensors


def right_volume(tensors, pool):
    return correlation.correlation4d(*(t.double() for t in tensors), *GRID, pool)


@token_faults
@pytest.mark.parametrize("dtype", DTYPES)
def test_correlation_reference(dtype, fault):
    tensors = tokens(dtype, fault)
    close(correlation.correlation4d(*tensors, *GRID, 3), right_volume(tensors, 3), dtype)


@token_faults
@pytest.mark.parametrize(
    ("dtype", "pool", "serial"),
    [("float32", 1, False), ("float32", 3, False), ("bfloat16", 3, False), (HALF, 3, True)],
)
def test_correlation_interpreted(dtype, fault, pool, serial):
    tensors = tokens(dtype, fault)
    tile = correlation_triton.Tile(16, 32, 16, 4, 1, serial=serial)
    got = correlation_triton.correlation4d(*tensors, *GRID, pool, tile)
    close(got, right_volume(tensors, pool), dtype)


@pytest.fixture(scope="module", params=["sm_80", "sm_87"])
def correlation_kernels(request):
    cases = [("float32", 3), (HALF, 3), (HALF, 1)]
    wanted = [
        correlation_variant(shape_of(pool), dtype, capability_of(request.param))
        for dtype, pool in cases
    ]
    made = compile_variants(target(request.param, oldest_cuda(request.param)), wanted)
    return list(zip(cases, wanted, made, strict=True))


def shape_of(pool):
    return CorrelationShape(1, 2, 2, 6, 16, *GRID, pool)


@token_faults
def test_correlation_compiled(correlation_kernels, fault):
    for (dtype, pool), variant, kernel in correlation_kernels:
        tensors = tokens(dtype, fault)
        expected = right_volume(tensors, pool)
        got = run_plugin(kernel, variant, shape_of(pool), tensors, expected.shape)
        close(got, expected, dtype)


def run_plugin(kernel, variant, shape, tensors, out_shape):
    """Launch a kernel of the plugins' form: inputs, scalars, one output."""
    names = [parameter["name"] for parameter in kernel.record["parameters"]]
    arguments = dict(zip(names, [*tensors, *scalars_of(shape)], strict=False))
    grid = grid_of(variant, shape, capability_of(kernel.record["arch"]))
    outputs = {names[-1]: (out_shape, tensors[0].dtype)}
    return run(kernel, grid, arguments, outputs)[names[-1]]


@token_faults
def test_correlation_in_onnx_runtime(fault):
    tensors = tokens("float32", fault)
    body = correlation_onnx.portable_function(*GRID, 3, onnx.TensorProto.FLOAT, 18)
    grid = {"height": GRID[0], "width": GRID[1], "pool": 3}
    got = onnx_runtime("Correlation4d", body, ("query", "support", "weight"), tensors, grid)
    close(got, right_volume(tensors, 3), "float32")


@token_faults
def test_correlation_in_openvino_takes_a_faulty_token_for_one_without_correlation(fault, tmp_path):
    """Its ReLU makes zero of NaN, as the README says; only the weight's NaN remains."""
    tensors = tokens("float32", fault)
    grid = {"height": GRID[0], "width": GRID[1], "pool": 3}
    got = open_vino("Correlation4d", ("query", "support", "weight"), tensors, grid, tmp_path)
    if fault[0] < 2:
        tensors[fault[0]][fault[1][:-1]] = 0
        expected = right_volume(tensors, 3)
        bound = OPERATOR["float32"].relative_l2
        assert (got - expected).norm() <= bound * expected.norm()
    else:
        close(got, right_volume(tensors, 3), "float32")


# --- SelectiveScan2d

PLANE = (2, 3, 5)
NAMES = ("x", "packed", "dt_weight", "dt_bias", "A", "skip")
# A row of packed: dt at 0 and 1, B at 2 to 5, C at 6 to 9.
CELLS = {
    "x NaN": (0, (1, 1, 2, 3), NAN),
    "x inf": (0, (1, 1, 2, 3), INF),
    "dt NaN": (1, (0, 2, 1, 3, 1), NAN),  # through softplus, as the infinities below
    "dt inf": (1, (0, 2, 1, 1, 0), INF),
    "dt -inf": (1, (0, 0, 1, 2, 0), -INF),
    "B NaN": (1, (1, 2, 4, 0, 3), NAN),
    "B -inf": (1, (1, 1, 0, 1, 4), -INF),
    "C NaN": (1, (1, 0, 0, 2, 6), NAN),
    "C inf": (1, (1, 2, 4, 0, 9), INF),
    "bias NaN": (3, (1, 2), NAN),
    "A NaN": (4, (2, 4, 1), NAN),
}
cell_faults = pytest.mark.parametrize("fault", CELLS.values(), ids=CELLS)
PARALLEL, SERIAL = Tiling(True, 4, 2, 16, 1), Tiling(False, 4, 2, 16, 1)


def plane(dtype, fault):
    channels, rank, states = 16, 2, 4
    own = [draw(*PLANE, channels, seed=1), draw(*PLANE, 4, 16, seed=2)]
    rest = [draw(4, channels, rank, seed=5), draw(4, channels, seed=6) - 3]
    rest += [-draw(4, channels, states, seed=7).abs() - 0.1, draw(4, channels, seed=8)]
    tensors = [t.to(getattr(torch, dtype)) for t in own] + rest
    operand, index, value = fault
    tensors[operand][index] = value
    return tensors


def right_plane(tensors):
    return scan.selective_scan2d(*(t.double() for t in tensors))


@cell_faults
@pytest.mark.parametrize("dtype", DTYPES)
def test_scan_reference(dtype, fault):
    tensors = plane(dtype, fault)
    close(scan.selective_scan2d(*tensors), right_plane(tensors), dtype)


@cell_faults
@pytest.mark.parametrize(
    ("dtype", "tiling"), [("float32", PARALLEL), ("bfloat16", PARALLEL), (HALF, SERIAL)], ids=str
)
def test_scan_interpreted(dtype, fault, tiling):
    tensors = plane(dtype, fault)
    close(scan_triton.selective_scan2d(*tensors, tiling=tiling), right_plane(tensors), dtype)


@pytest.fixture(scope="module")
def scan_kernels():
    """The parallel form by its own rule, the serial one by a shape with many sequences."""
    shapes = (ScanShape(2, 16, 17, 16, 4, 2), ScanShape(2, 3, 5, 16, 4, 2))
    wanted = [scan_variant(shape, dtype) for shape in shapes for dtype in (HALF, "float32")]
    return list(zip(wanted, compile_variants(target("sm_80", "12.6"), wanted), strict=True))


@cell_faults
def test_scan_compiled(scan_kernels, fault):
    shape = ScanShape(*PLANE, 16, 4, 2)
    for variant, kernel in scan_kernels:
        tensors = plane(variant.dtype, fault)
        expected = right_plane(tensors)
        names = [parameter["name"] for parameter in kernel.record["parameters"]]
        arguments = dict(zip(names, [*tensors, *scalars_of(shape)], strict=False))
        groups = 2 if variant.constants["PARALLEL"] else 1
        outputs = {names[-1]: (expected.shape, tensors[0].dtype)}
        got = run(kernel, (groups, 1, 1), arguments, outputs)[names[-1]]
        close(got, expected, variant.dtype)


@cell_faults
def test_scan_in_onnx_runtime(fault):
    tensors = plane("float32", fault)
    got = onnx_runtime("SelectiveScan2d", scan_onnx.portable_function(1, 18), NAMES, tensors, {})
    close(got, right_plane(tensors), "float32")


@cell_faults
def test_scan_in_openvino(fault, tmp_path):
    tensors = plane("float32", fault)
    got = open_vino("SelectiveScan2d", NAMES, tensors, {}, tmp_path)
    close(got, right_plane(tensors), "float32")


# --- selective_scan_fn

STEPS = {
    "u NaN": ("u", (1, 3, 20), NAN),
    "u inf": ("u", (1, 3, 20), INF),
    "delta NaN": ("delta", (0, 2, 9), NAN),
    "delta inf": ("delta", (0, 2, 9), INF),
    "B NaN": ("B", (1, 0, 2, 30), NAN),
    "C -inf": ("C", (0, 0, 1, 0), -INF),
    "z NaN": ("z", (1, 1, 1), NAN),
    "z inf": ("z", (1, 1, 2), INF),
    "bias NaN": ("delta_bias", (2,), NAN),
}
step_faults = pytest.mark.parametrize("fault", STEPS.values(), ids=STEPS)


def sequence(dtype, fault):
    narrow = lambda t: t.to(getattr(torch, dtype))  # noqa: E731
    values = {
        "u": narrow(draw(2, 16, 37, seed=1)),
        "delta": narrow(draw(2, 16, 37, seed=2)),
        "A": -draw(16, 4, seed=3).abs() - 0.1,
        "B": narrow(draw(2, 1, 4, 37, seed=4)),
        "C": narrow(draw(2, 1, 4, 37, seed=5)),
        "D": draw(16, seed=6),
        "z": narrow(draw(2, 16, 37, seed=7)),
        "delta_bias": draw(16, seed=8) - 2,
    }
    name, index, value = fault
    values[name][index] = value
    return values


def right_sequence(values):
    exact = {name: tensor.double() for name, tensor in values.items()}
    return scan.selective_scan_fn(**exact, delta_softplus=True)


@step_faults
@pytest.mark.parametrize("dtype", DTYPES)
def test_sequence_reference_and_interpreted(dtype, fault):
    values = sequence(dtype, fault)
    expected = right_sequence(values)
    close(scan.selective_scan_fn(**values, delta_softplus=True), expected, dtype)
    got, _ = scan1d_triton.selective_scan_fn(**values, delta_softplus=True)
    close(got, expected, dtype)


@pytest.fixture(scope="module")
def sequence_kernel():
    options = ("skip", "gate", "bias", "softplus")
    variant = scan1d_variant("float32", 16, 4, 37, options=options)
    (kernel,) = compile_variants(target("sm_80", "12.6"), [variant])
    return kernel


@step_faults
def test_sequence_compiled(sequence_kernel, fault):
    values = sequence("float32", fault)
    pointers = ("u_ptr", "delta_ptr", "a_ptr", "b_ptr", "c_ptr", "skip_ptr", "z_ptr", "bias_ptr")
    arguments = dict(zip(pointers, values.values(), strict=True))
    arguments |= {"dim": 16, "groups": 1, "length": 37}
    outputs = {"out_ptr": ((2, 16, 37), torch.float32), "last_ptr": ((2, 16, 4), torch.float32)}
    got = run(sequence_kernel, (2, 1, 1), arguments, outputs)["out_ptr"]
    close(got, right_sequence(values), "float32")


# --- runtimes


def onnx_runtime(name, body, inputs, tensors, attributes):
    """Run one node of ours by its body."""
    runtime = pytest.importorskip("onnxruntime")
    model = one_node(name, inputs, tensors, attributes, [body])
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options)
    feeds = dict(zip(inputs, (t.numpy() for t in tensors), strict=True))
    return torch.from_numpy(session.run(None, feeds)[0])


def open_vino(name, inputs, tensors, attributes, folder):
    """Run one node of ours by the converters of OpenVINO's reader."""
    openvino = pytest.importorskip("openvino")
    from uino_deploy.runtime import openvino_backend

    onnx.save_model(one_node(name, inputs, tensors, attributes, []), folder / "one.onnx")
    feeds = dict(zip(inputs, (t.numpy() for t in tensors), strict=True))
    shapes = {k: v.shape for k, v in feeds.items()}
    model = openvino_backend._read(folder / "one.onnx", shapes)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    return torch.from_numpy(next(iter(compiled(feeds).values())))


def one_node(name, inputs, tensors, attributes, functions):
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(n, 1, t.shape) for n, t in zip(inputs, tensors, strict=True)
    ]
    asked = {"aot": 1, "plugin_namespace": "", "plugin_version": "1"} if functions else {}
    node = helper.make_node(name, inputs, ["out"], domain="uino", **attributes, **asked)
    output = helper.make_tensor_value_info("out", 1, None)
    graph = helper.make_graph([node], "one", values, [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("uino", 2)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
