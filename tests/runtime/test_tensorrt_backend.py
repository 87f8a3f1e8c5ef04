"""The TensorRT backends: data flow, checks and messages on a CUDA and a TensorRT in numpy."""

import gc
import shutil
import sys

import msgspec
import numpy as np
import pytest

from tests.runtime import fake_cuda
from tests.runtime.fake_cuda import FakeTensorRt
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.plans import PlanInfo, plan_folder
from uino_deploy.errors import BundleError, CheckFailed, DependencyError, InputError
from uino_deploy.files import sha256
from uino_deploy.runtime import Predictor, tensorrt_backend
from uino_deploy.runtime.tensorrt_backend import TensorRtBackend

ARCH = "sm_87"


@pytest.fixture
def trt(cudart, monkeypatch):
    fake = FakeTensorRt(cudart)
    monkeypatch.setattr(tensorrt_backend, "_import_tensorrt", lambda _name: fake)
    return fake


def with_plans(fake_bundle, folder, **changes):
    """Return a copy of the bundle with a plan for each piece: the path of its ONNX file."""
    root = shutil.copytree(fake_bundle, folder / "planned.uino")
    bundle = Bundle.open(root)
    plans = plan_folder("tensorrt", ARCH)
    (root / plans).mkdir(parents=True)
    files = []
    for piece in bundle.manifest.pieces.values():
        plan = root / plans / f"{piece.name}.plan"
        plan.write_bytes(str(root / piece.model).encode())
        info = plan_info(bundle, piece, sha256(plan), **changes)
        plan.with_suffix(".json").write_bytes(msgspec.json.encode(info))
        files += [f"{plans}/{piece.name}.plan", f"{plans}/{piece.name}.json"]
    listed = {name: f"{plans}/{name}.plan" for name in bundle.manifest.pieces}
    return bundle.add(files, plans={"tensorrt-sm_87": listed})


def with_plan(bundle, piece, data):
    """Replace a plan's bytes; its description and the manifest agree with them."""
    plans = plan_folder("tensorrt", ARCH)
    plan = bundle.root / plans / f"{piece}.plan"
    plan.write_bytes(data)
    info = plan_info(bundle, bundle.piece(piece), sha256(plan))
    plan.with_suffix(".json").write_bytes(msgspec.json.encode(info))
    return bundle.add([f"{plans}/{piece}.plan", f"{plans}/{piece}.json"])


def plan_info(bundle, piece, digest, largest=3, **changes):
    shapes = {
        edge.name: tuple(
            [size if isinstance(size, int) else dynamic for size in edge.shape]
            for dynamic in (1, 1, largest)
        )
        for edge in piece.inputs
        if any(isinstance(size, str) for size in edge.shape)
    }
    values = {
        "piece": piece.name,
        "backend": "tensorrt",
        "version": FakeTensorRt.__version__,
        "arch": ARCH,
        "compute_capability": "8.7",
        "gpu": None,
        "precision": piece.precision,
        "shapes": shapes,
        "workspace": None,
        "layers": {},
        "matrix_layers": {},
        "engine": None,
        "route": "none",
        "operators": [],
        "sources": {piece.model: bundle.manifest.files[piece.model].sha256},
        "plan_sha256": digest,
        "built_by": "tests",
        "seconds": 1.0,
    }
    return msgspec.convert(values | changes, PlanInfo)


@pytest.fixture
def planned(fake_bundle, tmp_path):
    return with_plans(fake_bundle, tmp_path)


def image(batch=1, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 3, 56, 56)).astype(np.float32)


def test_the_second_backends_errors_are_its_own(planned, trt):
    first, second = TensorRtBackend(), TensorRtBackend()
    first.load(planned, "encoder")
    plan = planned.root / plan_folder("tensorrt", ARCH) / "encoder.plan"
    plan.write_bytes(b"damaged")
    info = plan_info(planned, planned.piece("encoder"), sha256(plan))
    plan.with_suffix(".json").write_bytes(msgspec.json.encode(info))
    names = [f"{plan_folder('tensorrt', ARCH)}/encoder.{kind}" for kind in ("plan", "json")]
    with pytest.raises(BundleError, match="Magic tag does not match"):
        second.load(planned.add(names), "encoder")


def test_no_runtime_is_a_missing_dependency(trt):
    trt.driver = False
    with pytest.raises(
        DependencyError, match=r"tensorrt 10\.9\.0\.34 cannot create a runtime: .*driver"
    ):
        TensorRtBackend()


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_piece_computes_what_onnxruntime_computes(planned, trt, cuda_graphs, batch):
    session = TensorRtBackend(cuda_graphs=cuda_graphs).load(planned, "encoder")
    reference = Predictor.load(planned.root, threads=1).backend.load(planned, "encoder")
    for seed in (0, 1, 2):
        found = session.run({"image": image(batch, seed)})
        wanted = reference.run({"image": image(batch, seed)})
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_whole_is_what_onnxruntime_finds(planned, trt, red_square, cuda_graphs):
    pixels, mask = red_square
    plain = Predictor.load(planned.root, threads=1)
    predictor = Predictor(planned, TensorRtBackend(cuda_graphs=cuda_graphs))
    shots = {
        "red": [(pixels, mask)],
        "blue": [(pixels, 1 - mask), (pixels[:, 5:], 1 - mask[:, 5:])],
    }
    ours = [predictor.enroll(each, name) for name, each in shots.items()]
    theirs = [plain.enroll(each, name) for name, each in shots.items()]
    for one, other in zip(ours, theirs, strict=True):
        for name, array in other.tensors.items():
            np.testing.assert_array_equal(one.tensors[name], array)
    for turned in (pixels, pixels[::-1], pixels):
        for mine, wanted in zip(
            predictor.predict(turned, ours), plain.predict(turned, theirs), strict=True
        ):
            np.testing.assert_array_equal(mine.logits, wanted.logits)
            np.testing.assert_array_equal(mine.mask, wanted.mask)


def test_an_encoded_query_outlives_the_next_one(planned, trt, red_square):
    pixels, mask = red_square
    predictor = Predictor(planned, TensorRtBackend())
    support = predictor.enroll([(pixels, mask)], "red")
    first = predictor.encode(pixels)
    wanted = predictor.predict(first, support)
    for turned in (pixels[::-1], pixels[:, ::-1], 255 - pixels):
        predictor.predict(turned, support)
    np.testing.assert_array_equal(predictor.predict(first, support).logits, wanted.logits)


def test_features_of_the_query_never_come_to_the_host(planned, trt, cudart, red_square):
    pixels, mask = red_square
    predictor = Predictor(planned, TensorRtBackend())
    classes = [predictor.enroll([(pixels, mask)], name) for name in ("a", "b", "c")]
    predictor.predict(pixels, classes)
    copies = []
    original = cudart.cudaMemcpyAsync

    def spy(target, source, size, kind, stream):
        copies.append((kind.name.removeprefix("cudaMemcpy"), size))
        return original(target, source, size, kind, stream)

    cudart.cudaMemcpyAsync = spy
    predictor.predict(pixels, classes)
    # The image in; for each class the logits and the score out, and once for all the last layer's
    # tokens, which tell whether a class is present; the classes stay on the device.
    layers, width = predictor.bundle.piece("encoder").outputs[-1].shape[1::2]
    assert layers > 1
    answer = [("DeviceToHost", 16 * 16 * 4), ("DeviceToHost", 4)]
    assert copies == [
        ("HostToDevice", 3 * 56 * 56 * 4),
        *answer,
        ("DeviceToHost", 4 * 4 * width * 4),
        *answer * 2,
    ]


def test_nothing_is_allocated_once_it_runs(planned, trt, cudart, red_square):
    pixels, mask = red_square
    predictor = Predictor(planned, TensorRtBackend())
    classes = [predictor.enroll([(pixels, mask)], name) for name in ("a", "b")]
    predictor.predict(pixels, classes)
    cudart.calls.clear()
    predictor.predict(pixels, classes)
    assert not {"cudaMalloc", "cudaFree", "cudaMallocHost"} & set(cudart.calls)
    # Two classes; the tokens that tell whether they are present; staging, if at all.
    assert cudart.calls.count("cudaStreamSynchronize") <= 4


def test_a_dropped_class_and_a_dropped_predictor_free_their_memory(
    planned, trt, cudart, red_square
):
    predictor = Predictor(planned, TensorRtBackend())
    backend = predictor.backend
    support = predictor.enroll([red_square], "red")
    predictor.predict(red_square[0], support)
    assert predictor._classes
    del support
    gc.collect()
    assert not predictor._classes
    trt.weights = 0
    del predictor, backend
    gc.collect()
    assert cudart.pinned == {}
    assert set(map(len, cudart.device.values())) == {4096}, "what the fake engines hold"


def test_a_graph_is_recorded_once_for_a_shape(planned, trt, cudart):
    session = TensorRtBackend(cuda_graphs=True).load(planned, "encoder")
    for batch in (1, 1, 2, 2, 1):
        session.run({"image": image(batch)})
    assert cudart.calls.count("cudaStreamBeginCapture") == 3
    assert cudart.calls.count("cudaGraphLaunch") == 5
    assert cudart.calls.count("cudaGraphExecDestroy") == 2


def test_shapes_are_set_only_when_they_change(planned, trt):
    session = TensorRtBackend().load(planned, "encoder")
    for batch in (1, 1, 2, 2, 1):
        session.run({"image": image(batch)})
    assert session._context.shape_changes == 3


def test_memory_is_reported(planned, trt, cudart):
    backend = TensorRtBackend()
    session = backend.load(planned, "encoder")
    assert backend.memory().engines == trt.weights
    kept = session.run_resident({"image": image()})
    backend.synchronise()
    report = backend.memory()
    assert report.buffers >= image().nbytes + kept["deep"].nbytes
    assert report.used == cudart.used == report.engines + report.buffers
    assert report.total == cudart.capacity
    described = backend.describe()
    assert described["device"] == "Fake GPU (sm_87)"
    assert described["version"] == "10.9.0.34"


def test_an_array_of_another_device_is_copied(planned, trt):
    session, other = (TensorRtBackend().load(planned, "encoder") for _ in range(2))
    there = other.upload({"image": image()})
    wanted = session.run({"image": image()})["deep"]
    np.testing.assert_array_equal(session.run(there)["deep"], wanted)


# --- what does not fit


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "takes"),
        ({"image": image()[:, :, :42]}, r"\['batch', 3, 56, 56\], not \[1, 3, 42, 56\]"),
        ({"image": image(4)}, r"built for \[1, 3, 56, 56\] to \[3, 3, 56, 56\].*--shapes batch"),
    ],
)
def test_feeds_that_do_not_fit(planned, trt, feeds, words):
    session = TensorRtBackend().load(planned, "encoder")
    with pytest.raises(InputError, match=words):
        session.run(feeds)


def test_resident_arrays_that_do_not_fit(planned, trt):
    backend = TensorRtBackend()
    session = backend.load(planned, "encoder")
    half = backend.device.upload(image().astype(np.float16))
    with pytest.raises(InputError, match="takes image as float32, not float16"):
        session.run({"image": half})
    with pytest.raises(InputError, match="of shape"):
        session.run({"image": backend.device.upload(image()[0])})
    with pytest.raises(InputError, match="takes"):
        session.upload({"picture": image()})


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_call_that_returns_false_is_a_failure(planned, trt, cudart, call, cuda_graphs):
    session = TensorRtBackend(cuda_graphs=cuda_graphs).load(planned, "encoder")
    trt.refused = call
    with pytest.raises(CheckFailed, match="the engine of encoder") as caught:
        session.run({"image": image()})
    assert caught.value.exit_code == 1
    trt.refused = ""
    assert np.isfinite(session.run({"image": image()})["deep"]).all()


def test_an_engine_that_fails_while_it_is_captured(planned, trt, cudart):
    session = TensorRtBackend(cuda_graphs=True).load(planned, "encoder")
    begin = cudart.cudaStreamBeginCapture

    def refuse(stream, mode):
        trt.refused = "execute_async_v3"
        return begin(stream, mode)

    cudart.cudaStreamBeginCapture = refuse
    with pytest.raises(CheckFailed, match="did not run"):
        session.run({"image": image()})
    assert cudart.capturing is None
    trt.refused = ""
    cudart.cudaStreamBeginCapture = begin
    assert np.isfinite(session.run({"image": image()})["deep"]).all()


def test_a_plan_that_cannot_be_loaded(planned, trt, monkeypatch):
    bundle = with_plan(planned, "encoder", b"damaged")
    with pytest.raises(BundleError, match=r"cannot be loaded: Magic tag.*uino-deploy build"):
        TensorRtBackend().load(bundle, "encoder")


def test_a_plan_changed_after_the_check_is_not_loaded(planned, trt, monkeypatch):
    plan = planned.root / plan_folder("tensorrt", ARCH) / "encoder.plan"
    plan.write_bytes(b"damaged")
    monkeypatch.setattr(FakeTensorRt, "Runtime", lambda *_: None)
    with pytest.raises(BundleError, match=r"encoder\.plan was changed.*uino-deploy build"):
        TensorRtBackend().load(planned, "encoder")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"version": "10.3.0"},
            r"built by tensorrt 10\.3\.0; this machine has 10\.9.*uino-deploy build",
        ),
        ({"sources": {"encoder.onnx": "0" * 64}}, "was built from another encoder"),
    ],
)
def test_a_stale_or_foreign_plan_is_refused_before_it_is_loaded(
    fake_bundle, tmp_path, trt, monkeypatch, changes, words
):
    bundle = with_plans(fake_bundle, tmp_path, **changes)
    monkeypatch.setattr(FakeTensorRt, "Runtime", lambda *_: None)
    with pytest.raises(BundleError, match=words):
        TensorRtBackend().load(bundle, "encoder")


def test_no_plan_for_this_gpu(planned, trt, cudart):
    cudart.capability = (9, 0)
    with pytest.raises(BundleError, match=r"has no plan .*sm_90.*--arch sm_90"):
        TensorRtBackend().load(planned, "encoder")


def test_a_plan_of_another_piece(planned, trt):
    other = planned.root / plan_folder("tensorrt", ARCH) / "adapter.plan"
    bundle = with_plan(planned, "encoder", other.read_bytes())
    with pytest.raises(BundleError, match=r"has .*'early'.*manifest has .*'image'"):
        TensorRtBackend().load(bundle, "encoder")


def test_python_plugins_are_registered_before_their_plan_is_loaded(
    fake_bundle, tmp_path, trt, monkeypatch
):
    from uino_deploy.kernels import plugins

    seen = []
    monkeypatch.setattr(plugins, "register_plugins", lambda *given: seen.append(given))
    bundle = with_plans(fake_bundle, tmp_path, route="ipluginv3")
    folder = bundle.root / "kernels" / ARCH
    folder.mkdir(parents=True)
    (folder / "kernels.json").write_text("{}")
    TensorRtBackend().load(bundle, "prompt")
    assert seen[0][:3] == (ARCH, None, "ipluginv3"), "nobody listed them: they are not the bundle's"
    listed = bundle.add([f"kernels/{ARCH}/kernels.json"])
    TensorRtBackend().load(listed, "prompt")
    assert seen[1][:3] == (ARCH, folder, "ipluginv3")
    read = seen[1][3]
    assert read(folder / "kernels.json") == b"{}"
    (folder / "another.json").write_text("{}")
    with pytest.raises(BundleError, match="not listed"):
        read(folder / "another.json")
    (folder / "kernels.json").write_text("[]")
    with pytest.raises(BundleError, match="was changed"):
        read(folder / "kernels.json")


def test_without_tensorrt_the_extra_is_named(monkeypatch, cudart):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        DependencyError, match=r"tensorrt cannot be imported.*pip install -e '\.\[tensorrt"
    ):
        TensorRtBackend()


def test_layers_are_those_of_the_last_run(planned, trt):
    session = TensorRtBackend(profile=True).load(planned, "encoder")
    plain = TensorRtBackend().load(planned, "encoder")
    for seed in (0, 1):
        found = session.run({"image": image(seed=seed)})
        for name, array in plain.run({"image": image(seed=seed)}).items():
            np.testing.assert_array_equal(found[name], array)
    assert session.layers() == [
        ("[MUL]-[node_mul]", "[MUL]-[node_mul]", 0.0005),
        ("_gemm_mha_v2", "_gemm_mha_v2", 0.0015),
    ]


def test_the_fake_has_only_what_tensorrt_has():
    """TensorRT-RTX's bindings are TensorRT's, with more; tests/contract asks TensorRT's own."""
    real = pytest.importorskip("tensorrt_rtx")
    for kind in fake_cuda.DataType:
        assert int(getattr(real.DataType, kind.name)) == kind.value
    severities = vars(FakeTensorRt.ILogger).items()
    assert {int(getattr(real.ILogger, n)) == v for n, v in severities if n.isupper()} == {True}
    for name in ("TensorIOMode", "TensorLocation"):
        assert all(
            hasattr(getattr(real, name), member) for member in vars(getattr(FakeTensorRt, name))
        )
    for fake, name in (
        (fake_cuda.Runtime, "Runtime"),
        (fake_cuda.Engine, "ICudaEngine"),
        (fake_cuda.Context, "IExecutionContext"),
    ):
        methods = {each for each in vars(fake) if not each.startswith("_")} - {"edge"}
        assert [each for each in methods if not hasattr(getattr(real, name), each)] == []
    assert hasattr(real.IProfiler, "report_layer_time")
    assert hasattr(real.ICudaEngine, "num_io_tensors")
