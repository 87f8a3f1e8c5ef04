"""`verify` passes a correct bundle, and names the wrong piece in another."""

from collections import Counter

import msgspec
import numpy as np
import onnx
import pytest

from tests.export.conftest import random_model
from uino_deploy.bundle import MANIFEST, Bundle, Manifest, write_manifest
from uino_deploy.bundle.reference import load_example
from uino_deploy.errors import CheckFailed
from uino_deploy.export import verify_bundle
from uino_deploy.export.graph_reader import precision_of
from uino_deploy.export.verify import _compare_form, mask_iou
from uino_deploy.letters import draw_letter
from uino_deploy.pipeline import PIECES
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.tolerances import piece_tolerance, relative_l2


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(threads=1)


def rewrite(path, change):
    """Change a graph of a bundle and make its manifest agree."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)
    manifest = msgspec.json.decode((path.parent / MANIFEST).read_bytes(), type=Manifest)
    write_manifest(path.parent, manifest)
    return Bundle.open(path.parent)


def test_the_export_equals_the_model(bundle, model, backend):
    report = verify_bundle(bundle, backend, model)
    assert report.passed, report.reason
    assert [swap.piece for swap in report.swaps] == [*PIECES, "query"]
    edges = {(p.name, e.name) for p in bundle.manifest.pieces.values() for e in p.outputs}
    compared = {(c.piece, c.output) for c in report.pieces}
    assert compared == {edge for edge in edges if edge[0] != "query"}
    report.require()


def test_given_images_and_several_shots(bundle, model, backend):
    shots = [draw_letter(seed) for seed in (1, 2, 3)]
    report = verify_bundle(bundle, backend, model, [(draw_letter(4)[0], shots)])
    assert report.passed, report.reason
    assert report.examples == 1


def test_the_stored_reference_needs_no_model(bundle, backend):
    report = verify_bundle(bundle, backend)
    assert report.passed, report.reason
    assert report.reference == "stored"


def test_a_wrong_decoder_is_the_guilty_piece(damaged, model, backend):
    def scale_a_bias(proto):
        for tensor in proto.graph.initializer:
            if tensor.name.endswith("output_hypernetworks_mlps.0.layers.2.bias"):
                values = onnx.numpy_helper.to_array(tensor) + np.float32(1)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
                return
        raise AssertionError("no such bias")

    report = verify_bundle(rewrite(damaged / "decoder.onnx", scale_a_bias), backend, model)
    assert not report.passed
    assert report.guilty == ["decoder"]
    assert "decoder.logits" in report.reason
    assert "would have passed" in report.reason
    failed = [swap.piece for swap in report.swaps if not swap.passed]
    assert failed == ["decoder"]
    with pytest.raises(CheckFailed, match="decoder"):
        report.require()


def test_a_wrong_operator_is_the_prompts_fault(damaged, model, backend):
    def drop_the_skip(proto):
        body = next(f for f in proto.functions if f.name == "SelectiveScan2d")
        node = next(n for n in body.node if n.output[0] == "skipped")
        node.op_type = "Sub"

    report = verify_bundle(rewrite(damaged / "prompt.onnx", drop_the_skip), backend, model)
    assert report.guilty == ["prompt"]


def zeroed(operator):
    """Return a change of a graph: what an operator gives is multiplied by nothing."""

    def change(proto):
        for index, node in enumerate(list(proto.graph.node)):
            if node.op_type == operator:
                name = node.output[0]
                node.output[0] = f"{name}_raw"
                less = onnx.helper.make_node("Sub", [f"{name}_raw", f"{name}_raw"], [name])
                proto.graph.node.insert(index + 1, less)
                return
        raise AssertionError(operator)

    return change


@pytest.mark.parametrize("piece", ["prompt", "query"])
@pytest.mark.parametrize("reference", ["stored", "pytorch"])
def test_an_operator_whose_result_is_thrown_away_is_found(
    damaged, model, backend, piece, reference
):
    # The tiny model's output hardly depends on its correlation (tests/model/test_sensitivity.py).
    bundle = rewrite(damaged / f"{piece}.onnx", zeroed("Correlation4d"))
    report = verify_bundle(bundle, backend, model if reference == "pytorch" else None)
    assert not report.passed
    wrong = {(c.piece, c.output) for c in report.operators if not c.passed}
    assert (piece, "operator.1.input") in wrong


def scaled(operator):
    """Return a change of a graph: an operator's portable function gives one per cent too much."""

    def change(proto):
        (body,) = [f for f in proto.functions if f.name == operator]
        name = body.output[0]
        (last,) = [n for n in body.node if name in n.output]
        last.output[list(last.output).index(name)] = "right"
        factor = onnx.numpy_helper.from_array(np.float32(1.01), "factor")
        body.node.append(onnx.helper.make_node("Constant", [], ["factor"], value=factor))
        body.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [name]))

    return change


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (0, "Correlation4d"),
        (1, "ScanPrologue"),
        (2, "SelectiveScan2d"),
        (3, "ScanEpilogue"),
        (7, "NormMlp"),
    ],
)
def test_every_operator_is_held_by_its_own_result(damaged, backend, call, operator):
    """In the exported functions, without a model: the norm behind a factor would swallow it."""
    report = verify_bundle(rewrite(damaged / "prompt.onnx", scaled(operator)), backend)
    assert report.guilty == ["prompt"]
    first = next(each.output for each in report.operators if not each.passed)
    assert first == f"operator.{call}.output"


@pytest.mark.parametrize(
    ("piece", "operator"), [("prompt", "SelectiveScan2d"), ("query", "Correlation4d")]
)
def test_a_wrong_function_is_found_where_native_operators_run_in_its_place(
    damaged, backend, piece, operator
):
    bundle = rewrite(damaged / f"{piece}.onnx", scaled(operator))
    wrong = [each for each in verify_bundle(bundle, backend).operators if not each.passed]
    assert {each.piece for each in wrong} == {piece}
    # Nothing else sees it: the native operators are right.
    own = _compare_form(bundle, backend, "fp32", [load_example(bundle)])
    assert all(each.passed for each in own)


def test_a_backend_without_native_operators_compares_nothing_twice(bundle, backend):
    portable = backend.portable()
    assert portable is not None
    assert portable.portable() is None
    report = verify_bundle(bundle, portable)
    assert set(Counter((c.piece, c.output) for c in report.operators).values()) == {1}


def test_what_the_operators_take_and_give_is_compared(bundle, backend):
    report = verify_bundle(bundle, backend)
    compared = {(c.piece, c.output) for c in report.operators}
    # One correlation, whose features come from outside the piece, and two stages of two mixers and
    # an MLP; a mixer is a prologue, which gives two tensors, a scan and an epilogue.
    names = {f"operator.{call}.{what}" for call in range(1, 15) for what in ("input", "output")}
    names |= {f"operator.{call}.second" for call in (1, 4, 8, 11)} | {"operator.0.output"}
    assert compared == {(piece, name) for piece in ("prompt", "query") for name in names}


@pytest.mark.parametrize("label", ["fp16", "int8"])
def test_a_label_does_not_widen_the_tolerance(damaged, backend, label):
    path = damaged / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["pieces"]["decoder"]["precision"] = label
    path.write_bytes(msgspec.json.encode(manifest))
    report = verify_bundle(Bundle.open(damaged), backend)
    assert not report.passed
    assert f"piece decoder is {label} in the manifest and fp32 in its graph" in report.reason
    assert {c.allowed for c in report.pieces} == {piece_tolerance("fp32").relative_l2}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_precision_is_read_from_the_graph(exported, precision):
    bundle = exported(precision)
    for piece in bundle.manifest.pieces.values():
        assert precision_of(bundle.read(piece.model)) == precision


def test_another_model_is_not_compared(bundle, backend):
    other = random_model()
    other.encoder.cls_token.data += 1
    with pytest.raises(CheckFailed, match="not exported from this model"):
        verify_bundle(bundle, backend, other)


def test_metrics():
    assert relative_l2(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert relative_l2(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert relative_l2(np.ones(2), np.ones(3)) == float("inf")
    a, b = np.array([True, True, False]), np.array([True, False, False])
    assert mask_iou(a, b) == 0.5
    assert mask_iou(np.zeros(3, bool), np.zeros(3, bool)) == 1.0
