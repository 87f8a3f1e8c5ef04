"""Forecasts of precision: exact rounding, blocks, prefixes, planted overflow, the command."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from tests.export.planted import plant
from tests.export.test_commands import main
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.reference import load_example
from uino_deploy.export.forecast.blocks import cut_piece, read_blocks
from uino_deploy.export.forecast.chain import Chain, Sample
from uino_deploy.export.forecast.forecast import Trials, forecast_precision
from uino_deploy.export.forecast.page import write_page
from uino_deploy.export.forecast.ranges import measure_ranges, range_of
from uino_deploy.export.forecast.results import Effect
from uino_deploy.export.forecast.rounding import KINDS, applies, round_array, rounded
from uino_deploy.export.forecast.samples import folder_samples, thing_samples
from uino_deploy.export.forecast.tables import guilty_rows, whole_rows
from uino_deploy.letters import draw_letter
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.tolerances import piece_tolerance, relative_l2

EDGES = [0.0, 1.0001, -1.0003, 65504.0, 65519.0, -65520.0, 1e5, 6.0e-5, 6e-8, 2.9e-8, 448.0, 3e38]


@pytest.fixture(scope="module")
def letters() -> list[Sample]:
    return [Sample("S", draw_letter(0, "S")[0], [draw_letter(1, "S")])]


@pytest.fixture(scope="module")
def chain(bundle, letters) -> Chain:
    return Chain(bundle, letters)


def torch_rounded(values: np.ndarray, kind: str, axis: int | None) -> np.ndarray:
    """Round as PyTorch's types do: an oracle that shares no code with the graphs."""
    tensor = torch.from_numpy(values)
    if kind in {"fp16", "bf16"}:
        return tensor.to({"fp16": torch.float16, "bf16": torch.bfloat16}[kind]).float().numpy()
    if kind == "tf32":
        bits = values.view(np.uint32)
        even = np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
        return ((bits + even) & np.uint32(0xFFFFE000)).view(np.float32)
    largest = tensor.abs().amax(dim=axis, keepdim=True) if axis is not None else tensor.abs().max()
    scale = largest / {"int8": 127, "fp8": 448}[kind]
    steps = tensor / scale
    whole = steps.round() if kind == "int8" else steps.to(torch.float8_e4m3fn).float()
    return (whole * scale).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_rounded_as_pytorch_rounds(kind):
    random = np.random.default_rng(0)
    values = (random.standard_normal((7, 33)) * 10.0 ** random.integers(-6, 4, (7, 33))).astype(
        "f4"
    )
    if kind in {"fp16", "bf16"}:
        values[0, : len(EDGES)] = EDGES
    for axis in (None, -1, -2):
        got = round_array(values, kind, None if axis is None else (axis,))
        np.testing.assert_array_equal(got, torch_rounded(values, kind, axis))


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_computes_on_rounded_values(kind):
    """Weights per channel, activations per token, float32 sums, in halves a rounded output."""
    random = np.random.default_rng(1)
    tokens = random.standard_normal((2, 5, 64)).astype("f4")
    tokens[0, 0] *= 1000  # one scale for all tokens would lose the others
    weight = random.standard_normal((64, 8)).astype("f4")
    [block] = cut_piece("encoder", one_product(weight))
    model = rounded(block, {"encoder/product": kind})
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [got] = session.run(None, {"tokens": tokens})
    exact = torch_rounded(tokens, kind, -1) @ torch_rounded(weight, kind, 0)
    wanted = torch_rounded(exact, kind, None) if kind in {"fp16", "bf16"} else exact
    # Sums in another order may fall on the other side of a half's rounding: one unit of it.
    unit = {"fp16": 2**-10, "bf16": 2**-7}.get(kind, 1e-5)
    np.testing.assert_allclose(got, wanted, rtol=unit, atol=1e-4)
    assert relative_l2(got, tokens @ weight) > 1e-5  # something was rounded


def one_product(weight: np.ndarray) -> onnx.ModelProto:
    """Return a piece of one matrix product."""
    node = helper.make_node("MatMul", ["tokens", "weight"], ["out"], "product")
    edges = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 5, size])
        for name, size in (("tokens", weight.shape[0]), ("out", weight.shape[1]))
    ]
    constants = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([node], "encoder", edges[:1], edges[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_blocks_hold_every_node_once_and_are_named_after_modules(bundle):
    blocks = read_blocks(bundle)
    names = [block.name for block in blocks]
    assert len(set(names)) == len(names)
    depth = bundle.config.encoder.depth
    assert names[: depth + 1] == [
        "encoder.patch_embed",
        *(f"encoder.blocks.{number}" for number in range(depth)),
    ]
    for piece in ("encoder", "decoder"):
        model = onnx.load(bundle.path(f"{piece}.onnx"), load_external_data=False)
        cut = [n.name for b in blocks if b.piece == piece for n in b.model.graph.node]
        assert cut == [node.name for node in model.graph.node]
    layers = {node.layer for block in blocks for node in block.nodes if node.product}
    assert {"encoder.blocks.2.mlp.fc2", "encoder.blocks.2.attn.qkv"} <= layers
    assert "decoder.transformer.layers.1.cross_attn_token_to_image.k_proj" in layers


def test_the_chain_is_the_model_and_a_suffix_runs_only_what_depends(bundle, chain, monkeypatch):
    wanted = load_example(bundle)["logits"]
    assert relative_l2(chain.logits(0), wanted) < piece_tolerance("fp32").relative_l2
    ran = []
    outputs = chain._outputs
    monkeypatch.setattr(
        chain,
        "_outputs",
        lambda s, block, *rest: ran.append(block.name) or outputs(s, block, *rest),
    )
    number = next(n for n, b in enumerate(chain.blocks) if b.name == "adapter.expand")
    [same] = chain.run({number: chain.blocks[number].model})
    assert relative_l2(same, chain.logits(0)) < 1e-5  # float32 again, fused differently
    assert ran[0] == "adapter.expand"
    assert {name.split(".")[0] for name in ran[1:]} == {"decoder"}


def test_a_rounded_encoder_also_enrols_the_class(chain, monkeypatch):
    """A device encodes query and shots alike, so both images and the class are computed again."""
    number = next(n for n, b in enumerate(chain.blocks) if b.name == "encoder.blocks.1")
    ran = []
    outputs = chain._outputs
    monkeypatch.setattr(
        chain,
        "_outputs",
        lambda s, block, place, *rest: (
            ran.append((block.name, place)) or outputs(s, block, place, *rest)
        ),
    )
    block = chain.blocks[number]
    chain.run({number: rounded(block, {node.name: "bf16" for node in block.nodes})})
    assert {("encoder.blocks.1", 0), ("encoder.blocks.1", 1), ("support.semantic", 0)} <= set(ran)
    assert not [each for each in ran if each[0] == "encoder.blocks.0"]


def test_the_whole_in_float16_is_forecast_within_the_band_of_the_gate(half, chain, letters):
    """ONNX Runtime computes the exported float16 bundle; the forecast starts from float32."""
    kinds = {n.name: "fp16" for b in chain.blocks for n in b.nodes if applies(n, "fp16")}
    trials = Trials(chain, measure_ranges(chain))
    forecast = trials.mixed(kinds).logits
    from uino_deploy.runtime import Predictor

    predictor = Predictor(half, OnnxRuntimeBackend())
    support = predictor.enroll(letters[0].shots, name="S")
    [found] = predictor.predict(letters[0].image, [support])
    measured = relative_l2(found.logits, chain.logits(0)[0, 0])
    assert measured / 4 < forecast < 4 * measured


def test_a_planted_overflow_is_found_by_name(bundle, letters, tmp_path):
    planted, name = plant(bundle, tmp_path / "planted.uino", "encoder.blocks.3.mlp.fc2", 1e7)
    found = forecast_precision(planted, letters, kinds=["fp16"], minutes=1)
    first = found.guilty[0]
    assert (first.node, first.layer) == (name, "encoder.blocks.3.mlp.fc2")
    assert "65504" in first.reason
    assert found.whole["fp16"].logits is None
    bad = {b.name for b in found.blocks if not b.effects["fp16"].keeps(0.99)}
    assert "encoder.blocks.3" in bad
    assert not bad & {"encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2"}
    carried = [node.name for node in found.nodes if node.overflows.get("fp16") == "takes"]
    assert carried
    assert not set(carried) & {guilt.node for guilt in found.guilty}


def test_without_the_plant_nothing_overflows(chain):
    trials = Trials(chain, measure_ranges(chain))
    assert not any(trials.overflows(node) for block in chain.blocks for node in block.nodes)


def test_a_forecast_without_time_says_what_it_skipped(bundle, letters):
    found = forecast_precision(bundle, letters, kinds=["fp16"], minutes=0)
    assert found.whole == {}
    assert "fp16: the whole" in found.skipped
    assert "fp16: encoder.blocks.1" in found.skipped
    assert all(node.gives.largest is not None for node in found.nodes)


def test_what_did_not_run_does_not_pass(bundle, letters):
    """Without time, or with masks in which nothing could change, the page claims nothing."""
    late = forecast_precision(bundle, letters, kinds=["fp16"], minutes=0)
    page = write_page(late)
    assert "Not every type was forecast" in page
    assert "fp16: the whole" in page
    assert "No node was tried." in page
    good = Effect(logits=1e-4, mask_iou=1.0, samples=1)
    kept = replace(late, whole={"fp16": good}, skipped=[])
    assert "In the budget: float16" in write_page(kept)
    assert whole_rows(kept)[1][0][3] == "yes"
    empty = replace(kept, foreground=[0.0])
    assert "No mask to judge by" in write_page(empty)
    assert "In the budget" not in write_page(empty)
    assert whole_rows(empty)[1][0][3] == "masks empty"


def test_an_overflow_is_guilty_without_time(bundle, letters, tmp_path):
    """Ranges are measured whatever the time, and show it."""
    layer = "encoder.blocks.3.mlp.fc2"
    planted, name = plant(bundle, tmp_path / "planted.uino", layer, 1e7)
    found = forecast_precision(planted, letters, kinds=["fp16"], minutes=0)
    assert name in [row[1] for row in guilty_rows(found, 5)[1]]
    assert "Over the budget: float16" in write_page(found)


def test_the_command_says_that_nothing_was_tried(capsys, bundle):
    code, out, err = main(capsys, "precision", bundle.root, "--minutes", "0", "--most", "2")
    assert code == 0, err
    assert "no node was tried" in out
    assert "skipped for lack of time" in out
    assert "no node breaks" not in out


def test_a_range_counts_what_float16_cannot_hold():
    values = np.concatenate([np.full(9000, 0.5), np.full(999, 1e-5), [7e4]]).astype("f4")
    found = range_of(values)
    assert found.largest == pytest.approx(7e4)
    assert found.beyond(65504)
    assert found.subnormal["fp16"] == pytest.approx(0.0999)
    assert found.subnormal["bf16"] == 0
    assert range_of(np.array([np.inf], "f4")).largest is None


def test_each_scene_of_a_thing_is_the_shot_of_the_next():
    samples = thing_samples(3)
    assert [s.shots[0][0] is samples[n - 1].image for n, s in enumerate(samples)] == [True] * 3
    assert all(mask.any() for s in samples for _, mask in s.shots)
    assert {s.name.split()[0] for s in samples} == {samples[0].name.split()[0]}


def test_the_command_writes_a_record_and_a_page(capsys, tmp_path, bundle):
    for number, letter in enumerate("AR"):
        save_letter(tmp_path / f"{letter}.png", number, letter)
    options = ("--images", tmp_path, "--minutes", "0.15", "-o", tmp_path / "out", "--json")
    code, out, err = main(capsys, "precision", bundle.root, *options)
    assert code == 0, err
    document = json.loads(out)
    assert document == json.loads((tmp_path / "out/forecast.json").read_text())
    assert document["samples"] == ["A.png", "R.png"]
    text = (tmp_path / "out/forecast.html").read_text()
    assert "encoder.blocks.0" in text
    assert "Over depth" in text
    assert "simulated on A.png, R.png. The budget is" in text  # one paragraph
    code, out, err = main(capsys, "precision", bundle.root, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "exists" in err


def save_letter(path, seed: int, letter: str) -> None:
    from PIL import Image

    Image.fromarray(draw_letter(seed, letter)[0]).save(path)


def test_the_command_refuses_what_it_cannot_forecast(capsys, tmp_path, half, bundle):
    save_letter(tmp_path / "A.png", 0, "A")
    for arguments, words in (
        ((half.root,), "piece encoder is fp16"),
        ((bundle.root, "--images", tmp_path / "none"), "is not a folder"),
        ((bundle.root, "--images", tmp_path), "holds one image"),
        ((bundle.root, "--shot", f"{tmp_path}/A.png:{tmp_path}/A.png"), "--shot needs --images"),
        ((tmp_path / "missing.safetensors",), "missing.safetensors"),
    ):
        code, out, err = main(capsys, "precision", *arguments, "--quiet")
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert err.count("\n") == 1


def test_a_folder_takes_a_given_class(tmp_path):
    for number, letter in enumerate("AR"):
        save_letter(tmp_path / f"{letter}.png", number, letter)
    image, mask = draw_letter(5, "A")
    from PIL import Image

    (tmp_path / "shot").mkdir()
    Image.fromarray(image).save(tmp_path / "shot/i.png")
    Image.fromarray(mask * 255).save(tmp_path / "shot/m.png")
    samples = folder_samples(tmp_path, [(tmp_path / "shot/i.png", tmp_path / "shot/m.png")], 1)
    assert [sample.name for sample in samples] == ["A.png"]
    np.testing.assert_array_equal(samples[0].shots[0][1], mask)


@pytest.mark.slow
def test_a_planted_overflow_is_found_in_vitb14(tmp_path):
    """Random weights of full size, 518 px; the forecast proper takes minutes."""
    from uino_deploy.export import export_checkpoint

    root = tmp_path / "vitb14.uino"
    bundle = export_checkpoint(root, preset="vitb14", seed=0)
    layer = "encoder.blocks.7.mlp.fc2"
    planted, name = plant(Bundle.open(bundle.root), tmp_path / "planted.uino", layer, 5e5)
    found = forecast_precision(planted, thing_samples(2), kinds=["fp16"], minutes=30)
    assert (found.guilty[0].node, found.guilty[0].layer) == (name, layer)
