"""OpenVINO runs a bundle as exported, caches compiled pieces, and refuses other precisions."""

import gc
import hashlib
import os
import shutil
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnx
import pytest

from uino_deploy.bundle import Bundle, Manifest, write_manifest
from uino_deploy.errors import BundleError, DependencyError, InputError
from uino_deploy.runtime.backends import BackendOptions, open_backend

openvino = pytest.importorskip("openvino")

from uino_deploy.runtime import openvino_backend  # noqa: E402
from uino_deploy.runtime.openvino_backend import CACHE, OpenVinoBackend  # noqa: E402


@pytest.fixture
def copy(fake_bundle, tmp_path):
    fresh = shutil.ignore_patterns(".cache")
    return shutil.copytree(fake_bundle, tmp_path / "copy.uino", ignore=fresh)


def image(batch=1):
    return np.random.default_rng(0).normal(size=(batch, 3, 56, 56)).astype(np.float32)


def backend(**options):
    return OpenVinoBackend(threads=1, **{"cache": False, **options})


def blobs(bundle):
    return sorted((bundle / CACHE).glob("*.blob"))


@pytest.mark.parametrize("piece", ["encoder", "adapter", "support", "prompt", "decoder"])
def test_it_agrees_with_onnxruntime_at_every_batch_and_number_of_shots(fake_bundle, piece):
    bundle = Bundle.open(fake_bundle)
    ours = backend().load(bundle, piece)
    theirs = open_backend("onnxruntime", BackendOptions(threads=1)).load(bundle, piece)
    rng = np.random.default_rng(1)
    for sizes in ({"batch": 1, "shots": 1}, {"batch": 2, "shots": 3}):
        feeds = {
            t.name: rng.random([sizes.get(d, d) for d in t.shape], np.float32)
            for t in ours.piece.inputs
        }
        wanted = theirs.run(feeds)
        for name, got in ours.run(feeds).items():
            np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-6)


def test_results_are_the_callers_to_keep(fake_bundle):
    session = backend().load(Bundle.open(fake_bundle), "encoder")
    first = session.run({"image": image()})["early"]
    kept = first.copy()
    session.run({"image": image() + 1})
    np.testing.assert_array_equal(first, kept)


def test_only_some_shapes_stay_compiled(fake_bundle):
    session = backend().load(Bundle.open(fake_bundle), "encoder")
    for batch in range(1, 8):
        assert session.run({"image": image(batch)})["early"].shape[0] == batch
    assert len(session._compiled) == openvino_backend._KEPT_SHAPES


def test_several_items_at_once_give_what_one_after_the_other_gives(fake_bundle):
    made = OpenVinoBackend(threads=2, cache=False)
    session = made.load(Bundle.open(fake_bundle), "encoder")
    threads = set()

    def work(shift):
        threads.add(made.lane)
        return session.run({"image": image() + np.float32(shift)})["early"]

    results = made.each(work, range(12))
    assert threads <= {0, 1}
    for shift, got in enumerate(results):
        np.testing.assert_array_equal(
            got, session.run({"image": image() + np.float32(shift)})["early"]
        )
    assert made.lane is None
    assert made.each(lambda _item: made.lane, [1]) == [None]  # one alone may use all threads


def test_an_error_in_one_of_several_items_is_raised(fake_bundle):
    made = OpenVinoBackend(threads=2, cache=False)
    session = made.load(Bundle.open(fake_bundle), "encoder")
    with pytest.raises(InputError, match="takes"):
        made.each(session.run, [{"image": image()}, {}, {"image": image()}])


def test_a_kept_piece_is_used_again_and_the_bundle_stays_whole(copy, monkeypatch):
    bundle = Bundle.open(copy)
    wanted = backend(cache=True).load(bundle, "encoder").run({"image": image()})
    assert [blob.name.split("-")[0] for blob in blobs(copy)] == ["encoder"]
    again = Bundle.open(copy)  # the cache is none of the manifest's business

    def never(*_arguments):
        raise AssertionError("read the ONNX file")

    monkeypatch.setattr(openvino_backend, "_read", never)
    got = backend(cache=True).load(again, "encoder").run({"image": image()})
    np.testing.assert_array_equal(got["deep"], wanted["deep"])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_kept_piece_is_compiled_anew(copy, damage):
    bundle = Bundle.open(copy)
    wanted = backend(cache=True).load(bundle, "encoder").run({"image": image()})["early"]
    [blob] = blobs(copy)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes({"flip": data, "cut": data[:100], "empty": b""}[damage])
    got = backend(cache=True).load(bundle, "encoder").run({"image": image()})["early"]
    np.testing.assert_array_equal(got, wanted)


def replaced(bundle, piece, body, **described):
    """Put another graph in a piece's place, and say something else about it."""
    manifest = Bundle.open(bundle).manifest
    text = f'<ir_version: 8, opset_import: ["" : 18]>\n{body}'
    onnx.save_model(onnx.parser.parse_model(text), bundle / f"{piece}.onnx")
    entry = msgspec.structs.replace(manifest.pieces[piece], **described)
    pieces = {**manifest.pieces, piece: entry}
    write_manifest(bundle, msgspec.structs.replace(manifest, pieces=pieces))
    return Bundle.open(bundle)


def multiplying(kind):
    """The adapter with a matrix product in `kind`, the identity but for its rounding."""
    return f"""
        adapter (float[batch,16,3] early) => (float[batch,3,4,4] embedding)
        <int64[4] planes = {{0, 3, 4, 4}}, float[3,3] eye_32 = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}> {{
            eye = Cast <to = {kind}> (eye_32)
            tokens = Cast <to = {kind}> (early)
            same = MatMul (tokens, eye)
            channels = Transpose <perm = [0, 2, 1]> (same)
            plane = Reshape (channels, planes)
            embedding = Cast <to = 1> (plane)
        }}"""


FLOAT32, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16


def test_a_changed_piece_is_not_taken_from_the_cache(copy):
    backend(cache=True).load(Bundle.open(copy), "adapter")
    changed = replaced(copy, "adapter", multiplying(FLOAT32))
    backend(cache=True).load(changed, "adapter")
    assert len(blobs(copy)) == 2


@pytest.fixture
def bfloat16(copy):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute bfloat16")
    return replaced(copy, "adapter", multiplying(BFLOAT16), precision="bf16")


def test_bfloat16_is_computed_in_bfloat16(bfloat16):
    tokens = np.random.default_rng(2).random((1, 16, 3), np.float32)
    planes = backend().load(bfloat16, "adapter").run({"early": tokens})["embedding"]
    exact = tokens.transpose(0, 2, 1).reshape(1, 3, 4, 4)
    error = np.abs(planes - exact).max()
    assert 2**-12 < error < 2**-8  # 8 bits of each number


def test_a_processor_without_bfloat16_refuses_it(bfloat16):
    class Core:
        def get_property(self, _device, name):
            return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else "an old processor"

    made = backend()
    made._core = Core()
    with pytest.raises(DependencyError, match="bfloat16, which this processor does not"):
        made.load(bfloat16, "adapter")


@pytest.mark.parametrize(
    ("kind", "said", "computed"), [(FLOAT32, "bf16", "f32"), (BFLOAT16, "fp32", "bf16")]
)
def test_another_precision_than_the_manifests_is_refused(bfloat16, kind, said, computed):
    bundle = replaced(bfloat16.root, "adapter", multiplying(kind), precision=said)
    with pytest.raises(DependencyError, match=rf"adapter in .*{computed}.*, not in {said}"):
        backend().load(bundle, "adapter")


def test_float16_is_refused_before_anything_is_read(copy):
    bundle = replaced(copy, "adapter", multiplying(FLOAT32), precision="fp16")
    with pytest.raises(DependencyError, match="float16, which OpenVINO computes in float32"):
        backend().load(bundle, "adapter")


@pytest.mark.parametrize(
    "body",
    [
        multiplying(FLOAT32).replace("embedding", "other"),
        multiplying(FLOAT32).replace("early", "other"),
        multiplying(FLOAT32).replace("Transpose <perm = [0, 2, 1]>", "NoSuchOperator"),
        multiplying(FLOAT32).replace("{0, 3, 4, 4}", "{0, 3, 2, 8}"),
    ],
)
def test_a_graph_that_is_not_the_manifests(copy, body):
    with pytest.raises(BundleError, match=r"adapter"):
        backend().load(replaced(copy, "adapter", body), "adapter")


def test_options(monkeypatch):
    described = open_backend("openvino", BackendOptions(threads=2)).describe()
    assert described["backend"] == "openvino"
    assert described["threads"] == "2"
    with pytest.raises(InputError, match="0 threads"):
        OpenVinoBackend(threads=0)
    with pytest.raises(InputError, match="not accept providers"):
        open_backend("openvino", BackendOptions(providers=["cpu"]))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match="cannot be imported"):
        OpenVinoBackend()


def test_a_bundle_that_cannot_be_written_is_run_all_the_same(copy, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_backend, "atomic_file", full)
    session = backend(cache=True).load(Bundle.open(copy), "encoder")
    assert session.run({"image": image()})["early"].shape == (1, 16, 3)
    assert not blobs(copy)


def test_layers_are_those_of_the_last_run(fake_bundle):
    bundle = Bundle.open(fake_bundle)
    session, plain = (
        backend(profile=True).load(bundle, "encoder"),
        backend().load(bundle, "encoder"),
    )
    begun = time.perf_counter()
    found = session.run({"image": image()})
    elapsed = time.perf_counter() - begun
    for name, array in plain.run({"image": image()}).items():
        np.testing.assert_array_equal(found[name], array)
    layers = session.layers()
    assert 0 < sum(layer.seconds for layer in layers) < elapsed
    assert all(layer.name and layer.operator for layer in layers)


def test_the_process_has_one_core_and_keeps_it():
    first = backend()._core
    number = id(first)
    del first
    gc.collect()
    assert id(backend()._core) == id(backend(profile=True)._core) == number


def test_eight_threads_get_what_one_gets(fake_bundle):
    session = OpenVinoBackend(cache=False).load(Bundle.open(fake_bundle), "encoder")
    wanted = [session.run({"image": image(1 + i % 2) + np.float32(i)})["early"] for i in range(8)]

    def work(i):
        return [session.run({"image": image(1 + i % 2) + np.float32(i)})["early"] for _ in "1234"]

    with ThreadPoolExecutor(8) as pool:
        for i, results in enumerate(pool.map(work, range(8))):
            for got in results:
                np.testing.assert_array_equal(got, wanted[i])


def test_the_cache_is_closed_to_others(copy):
    backend(cache=True).load(Bundle.open(copy), "encoder")
    assert stat.S_IMODE((copy / CACHE).stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["another name", "another user", "open folder", "plain digest"])
def test_what_this_user_did_not_compile_from_this_bundle_is_not_used(copy, monkeypatch, how):
    bundle = Bundle.open(copy)
    wanted = backend(cache=True).load(bundle, "encoder").run({"image": image()})["early"]
    [blob] = blobs(copy)
    data = blob.read_bytes()
    if how == "another name":  # another model's piece under this one's
        other = shutil.copytree(copy, copy.parent / "other.uino", ignore=lambda *_: [".cache"])
        double(other / "encoder.onnx")
        opened = rehashed(other)
        backend(cache=True).load(opened, "encoder")
        blob.write_bytes(blobs(other)[0].read_bytes())
    elif how == "another user":
        monkeypatch.setenv("XDG_STATE_HOME", str(copy.parent / "state"))
    elif how == "open folder":
        (copy / CACHE).chmod(0o777)
    else:
        blob.write_bytes(data[:-32] + hashlib.sha256(data[:-32]).digest())
    read = []
    original = openvino_backend._read
    monkeypatch.setattr(openvino_backend, "_read", lambda *a: read.append(1) or original(*a))
    got = backend(cache=True).load(bundle, "encoder").run({"image": image()})["early"]
    np.testing.assert_array_equal(got, wanted)
    assert read


def test_without_a_home_nothing_is_kept(copy, monkeypatch):
    monkeypatch.setattr(openvino_backend, "user_key", lambda: None)
    backend(cache=True).load(Bundle.open(copy), "encoder")
    assert not (copy / CACHE).exists()


def double(path):
    model = onnx.load(path)
    for node in model.graph.node:
        if "early" in node.output:
            node.output[0] = "half"
    model.graph.node.insert(2, onnx.helper.make_node("Add", ["half", "half"], ["early"]))
    onnx.save(model, path)


def rehashed(root):
    write_manifest(root, msgspec.json.decode((root / "manifest.json").read_bytes(), type=Manifest))
    return Bundle.open(root)


@pytest.mark.parametrize("link", [".cache", CACHE])
def test_a_link_that_came_with_a_bundle_is_not_followed(copy, link):
    other = copy.parent / "other"
    other.mkdir(mode=0o755)
    (copy / link).parent.mkdir(exist_ok=True)
    (copy / link).symlink_to(other)
    backend(cache=True).load(Bundle.open(copy), "adapter")
    assert stat.S_IMODE(other.stat().st_mode) == 0o755
    assert list(other.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_another_users_folder_is_left_as_it_is(copy):
    (copy / CACHE).mkdir(parents=True)
    (copy / CACHE).chmod(0o755)
    os.chown(copy / CACHE, 65534, 65534)
    backend(cache=True).load(Bundle.open(copy), "adapter")
    assert stat.S_IMODE((copy / CACHE).stat().st_mode) == 0o755
    assert blobs(copy) == []
