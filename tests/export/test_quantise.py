"""int8 and fp8: which layers, written how, and the same masks."""

import shutil

import msgspec
import numpy as np
import onnx
import pytest

from tests.export.conftest import reuse
from uino_deploy.bundle import Bundle
from uino_deploy.data.calibration import SCENES, calibration_images
from uino_deploy.errors import BuildError, DependencyError, InputError
from uino_deploy.export import export_bundle, quantise, verify_bundle
from uino_deploy.export.formats import FORMATS
from uino_deploy.export.graph_reader import precision_of, read_graph
from uino_deploy.export.onnx_writer import save_model
from uino_deploy.export.opsets import DEFAULT_OPSET
from uino_deploy.export.precision import least_opset, parse_precision, rest_of
from uino_deploy.images import preprocess_image
from uino_deploy.pipeline import PIECES
from uino_deploy.runtime.backends import BackendOptions, open_backend
from uino_deploy.tolerances import relative_l2

KINDS = ["int8", "fp8"]
# The type of what lies in the file, by ONNX's number.
STORED = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}


class Graph:
    """An encoder's file, node by node."""

    def __init__(self, path):
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.makers = {name: node for node in graph.node for name in node.output}
        self.tensors = {t.name: t for t in graph.initializer}

    def kinds(self, kind):
        return [node for node in self.nodes if node.op_type == kind]

    def array(self, name):
        return onnx.numpy_helper.to_array(self.tensors[name])

    def of_weight(self, product):
        """The node that makes a product's second operand, if it is a linear layer's."""
        maker = self.makers.get(product.input[1])
        if maker is not None and maker.op_type == "DequantizeLinear":
            return maker if maker.input[0] in self.tensors else None
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_and_nothing_else_is_quantised(quantised, model, kind):
    graph = Graph(quantised(kind).root / "encoder.onnx")
    told = quantised(kind).piece("encoder").quantisation
    products = graph.kinds("MatMul")
    linear = [node for node in products if graph.of_weight(node)]
    depth = model.encoder.config.depth
    assert len(linear) == 4 * depth  # qkv, proj, fc1, fc2
    assert len(products) == told.layers == 6 * depth  # and attention's two
    activations = [(node, name) for node in products for name in node.input]
    activations = [(node, name) for node, name in activations if name != _weight(graph, node)]
    assert len(activations) == len(linear) + 2 * 2 * depth
    for _node, name in activations:
        restored = graph.makers[name]
        stored = graph.makers[restored.input[0]]
        assert (restored.op_type, stored.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert list(restored.input[1:]) == list(stored.input[1:])
        scale, zero = (graph.array(name) for name in stored.input[1:])
        assert scale.shape == zero.shape == ()
        assert scale > 0
        assert graph.tensors[stored.input[2]].data_type == STORED[kind]
        assert not zero.astype(np.float32).any()
    # Nobody else reads a restored tensor.
    assert len(graph.kinds("QuantizeLinear")) == (4 + 2 * 2) * depth
    assert len(graph.kinds("DequantizeLinear")) == (4 + 2 * 2) * depth + len(linear)
    readers = [n for n in graph.nodes if any(_is_restored(graph, name) for name in n.input)]
    assert {node.name for node in readers} == {node.name for node in products}


def _weight(graph, product):
    """The name of a product's second operand if that is a linear layer's weight."""
    return product.input[1] if graph.of_weight(product) else None


def _is_restored(graph, name):
    return name in graph.makers and graph.makers[name].op_type == "DequantizeLinear"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_lie_in_the_file_in_8_bits_with_a_scale_for_each_channel(quantised, bundle, kind):
    graph = Graph(quantised(kind).root / "encoder.onnx")
    assert not [t for t in graph.tensors.values() if len(t.dims) == 2 and t.data_type == 1]
    top = FORMATS[kind].top
    for node in graph.kinds("MatMul"):
        if restored := graph.of_weight(node):
            assert [(a.name, a.i) for a in restored.attribute] == [("axis", 1)]
            weight, scale, zero = (graph.array(name) for name in restored.input)
            assert graph.tensors[restored.input[0]].data_type == STORED[kind]
            assert scale.shape == zero.shape == (weight.shape[1],)
            assert not zero.astype(np.float32).any()
            # Every channel uses its whole range, on both sides of zero.
            assert (np.abs(weight.astype(np.float32)).max(axis=0) == top).all()
    sizes = [each.manifest.files["encoder.weights"].size for each in (quantised(kind), bundle)]
    assert sizes[0] < 0.35 * sizes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_and_the_graph_say_how(quantised, kind):
    made = quantised(kind)
    piece = made.piece("encoder")
    told = piece.quantisation
    assert piece.precision == precision_of(made.read(piece.model)) == kind
    assert (told.images, told.left_out, told.rest) == (4, [], "fp32")
    assert told.smoothed <= told.layers
    assert Bundle.open(made.root).piece("encoder") == piece
    assert {t.dtype for t in (*piece.inputs, *piece.outputs)} == {"float32"}
    assert made.manifest.opset == (19 if kind == "fp8" else DEFAULT_OPSET)
    for name, prefix in (("encoder", ""), ("query", "encoder/")):
        planned = read_graph(made.path(f"{name}.onnx")).quantised
        assert len(planned) == told.layers
        assert set(planned.values()) == {kind.upper()}
        assert all(each.startswith(prefix) for each in planned)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_verification(quantised, model, backend, kind):
    pytest.importorskip(backend)
    report = verify_bundle(quantised(kind), open_backend(backend, BackendOptions(threads=1)), model)
    assert report.reason == ""
    encoder = [c for c in report.pieces if c.piece == "encoder"]
    assert all(1e-4 < c.relative_l2 < 0.1 for c in encoder)  # it was rounded, and does no harm


@pytest.fixture
def encoder(bundle, tmp_path):
    """A copy of the float32 encoder to quantise."""
    for name in ("encoder.onnx", "encoder.weights"):
        shutil.copy(bundle.root / name, tmp_path)
    return tmp_path / "encoder.onnx"


@pytest.fixture
def inputs(model, calibration):
    return [preprocess_image(image, model.config.image_size)[None] for image in calibration[:2]]


def test_a_sensitive_layer_is_left_out(encoder, inputs, monkeypatch):
    model = onnx.load(encoder)
    quantise.split_projections(model)
    linears, pairs = quantise.measure(model, inputs, "int8")
    worst = max(linears, key=lambda layer: linears[layer].error)
    pair = max(pairs, key=lambda name: pairs[name].error)
    bound = 0.999 * min(linears[worst].error, pairs[pair].error)
    monkeypatch.setattr(quantise, "SENSITIVE", bound)
    told = quantise.quantise(encoder, inputs)
    wanted = [layer.name for layer, how in linears.items() if how.error > bound]
    wanted += [name for name, how in pairs.items() if how.error > bound]
    assert told.left_out == sorted(wanted)
    assert {pair, worst.name} <= set(told.left_out)
    graph = Graph(encoder)
    kept = [node for node in graph.kinds("MatMul") if node.name in told.left_out]
    assert not [node for node in kept if any(_is_restored(graph, name) for name in node.input)]
    assert told.layers + len(kept) == len(graph.kinds("MatMul"))


def test_an_encoder_that_bears_no_int8_is_refused(encoder, inputs, monkeypatch):
    monkeypatch.setattr(quantise, "SENSITIVE", 0.0)
    with pytest.raises(BuildError, match="every layer"):
        quantise.quantise(encoder, inputs)


def test_splitting_a_projection_changes_nothing(encoder, inputs, model, tmp_path):
    split = onnx.load(encoder)
    assert quantise.split_projections(split) == model.encoder.config.depth
    save_model(split, tmp_path / "split.onnx", "split.weights")
    files = (encoder, tmp_path / "split.onnx")
    for wanted, got in zip(*(run(path, inputs[0]) for path in files), strict=True):
        assert relative_l2(got, wanted) < 1e-5
    assert quantise.split_projections(split) == 0


def run(path, image):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {"image": image})


@pytest.mark.parametrize("kind", KINDS)
def test_beside_float16_scales_are_float16(half, inputs, tmp_path, kind):
    model = onnx.load(half.root / "encoder.onnx")
    model.opset_import[0].version = 19
    path = tmp_path / "encoder.onnx"
    save_model(model, path, "encoder.weights")
    wanted = run(path, inputs[0])
    told = quantise.quantise(path, inputs, kind)
    assert told.rest == "fp16"
    graph = Graph(path)
    nodes = [*graph.kinds("QuantizeLinear"), *graph.kinds("DequantizeLinear")]
    assert {graph.array(node.input[1]).dtype for node in nodes} == {np.dtype(np.float16)}
    assert precision_of(path.read_bytes()) == kind
    for got, exact in zip(run(path, inputs[0]), wanted, strict=True):
        assert 1e-3 < relative_l2(got, exact) < 0.1


def test_8_bits_are_for_the_encoder():
    assert parse_precision(["bf16", "encoder=int8"]) == {
        **dict.fromkeys(PIECES, "bf16"),
        "encoder": "int8",
    }
    for value in ("int8", "decoder=int8", "fp8", "prompt=fp8"):
        with pytest.raises(InputError, match="is for the encoder only"):
            parse_precision([value])


def test_the_rest_of_a_quantised_piece_follows_the_other_pieces():
    def asked(*values):
        chosen = parse_precision(values)
        return rest_of(chosen), least_opset(chosen)

    assert asked("encoder=int8") == ("fp32", 1)
    assert asked("bf16", "encoder=int8") == ("fp32", 1)
    assert asked("fp16", "encoder=int8") == ("fp16", 19)
    assert asked("encoder=fp8") == ("fp32", 19)
    assert asked("fp16") == ("fp16", 1)


def test_an_opset_without_fp8_is_refused(model, calibration, tmp_path):
    chosen = parse_precision(["encoder=fp8"])
    with pytest.raises(InputError, match=r"--opset 18 .*use 19"):
        export_bundle(
            model, tmp_path / "x.uino", precision=chosen, opset=18, calibration=calibration
        )


def test_openvino_refuses_a_float16_rest(quantised):
    pytest.importorskip("openvino")
    made = quantised("int8")
    pieces = dict(made.manifest.pieces)
    told = msgspec.structs.replace(pieces["encoder"].quantisation, rest="fp16")
    pieces["encoder"] = msgspec.structs.replace(pieces["encoder"], quantisation=told)
    half = Bundle(made.root, msgspec.structs.replace(made.manifest, pieces=pieces), made.config)
    with pytest.raises(DependencyError, match="float16"):
        open_backend("openvino", BackendOptions(threads=1)).load(half, "encoder")


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_leave_nothing_behind(model, bundle, tmp_path, monkeypatch, kind):
    reuse(monkeypatch, bundle)
    chosen = parse_precision([f"encoder={kind}"])
    with pytest.raises(InputError, match=f"{kind} needs calibration images"):
        export_bundle(model, tmp_path / "none.uino", precision=chosen)
    assert not list(tmp_path.iterdir())


def test_the_images_are_photographs_and_scenes():
    images = calibration_images()
    assert len(images) == 10 + SCENES
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
    again = calibration_images()
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
