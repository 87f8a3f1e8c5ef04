"""`--precision auto`: what stays float32, the mixed graphs, the budget, and the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.planted import plant
from tests.export.test_commands import main
from uino_deploy.bundle import Bundle
from uino_deploy.errors import BundleError, InputError
from uino_deploy.export import verify_bundle
from uino_deploy.export.choice import choose_types
from uino_deploy.export.exporter import export_mixed
from uino_deploy.export.forecast.chain import Chain, Sample
from uino_deploy.export.forecast.forecast import Trials
from uino_deploy.export.forecast.results import Effect
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.letters import draw_letter
from uino_deploy.runtime import Predictor
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.tolerances import relative_l2

ROOT = Path(__file__).resolve().parents[2]
LAYER = "encoder.blocks.3.mlp.fc2"


def sample(letter: str, seed: int) -> Sample:
    return Sample(letter, draw_letter(seed, letter)[0], [draw_letter(seed + 1, letter)])


@pytest.fixture(scope="module")
def planted(bundle, tmp_path_factory) -> tuple[Bundle, str]:
    """The model with massive activations behind one layer, and that layer's product."""
    return plant(bundle, tmp_path_factory.mktemp("planted") / "planted.uino", LAYER, 1e7)


@pytest.fixture(scope="module")
def chosen(planted, tmp_path_factory):
    """That model in chosen types."""
    halves, decision = choose_types(planted[0], [sample("S", 0)], sample("E", 3), 0.99)
    target = tmp_path_factory.mktemp("chosen") / "chosen.uino"
    return export_mixed(planted[0], target, halves, decision), halves


def logits(bundle: Bundle, each: Sample) -> np.ndarray:
    """Segment in ONNX Runtime."""
    predictor = Predictor(bundle, OnnxRuntimeBackend())
    support = predictor.enroll(each.shots, name=each.name)
    return predictor.predict(each.image, [support])[0].logits


def test_what_overflows_stays_float32_and_the_rest_does_not(planted, chosen):
    bundle, halves = chosen
    decision = bundle.manifest.decision
    assert planted[1] in decision.float32
    assert "float16 ends at 65504" in decision.float32[planted[1]]
    before = {name for name in halves if name.startswith("encoder/")}
    assert len(before) > 100
    assert 0.9 < decision.half_flops < 1
    assert not halves & decision.float32.keys()


def test_the_budget_holds_on_an_image_that_was_not_chosen_on(planted, chosen):
    for letter, seed in (("R", 7), ("K", 9)):
        wanted = logits(planted[0], sample(letter, seed))
        got = logits(chosen[0], sample(letter, seed))
        assert np.isfinite(got).all()
        same, either = ((got > 0) & (wanted > 0)).sum(), ((got > 0) | (wanted > 0)).sum()
        assert same >= 0.99 * either


def test_the_mixed_graph_computes_what_was_forecast(planted, chosen):
    """The islands are explicit casts: ONNX Runtime's error is that of the simulation."""
    each = sample("S", 0)
    forecast = chosen[0].manifest.decision.logits_error
    measured = relative_l2(logits(chosen[0], each), logits(planted[0], each))
    assert measured / 4 < forecast < 4 * measured


def test_the_graph_is_typed_as_decided(planted, chosen):
    model = onnx.load(chosen[0].path("encoder.onnx"), load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = {n.name: types[n.input[1]] for n in model.graph.node
                if n.op_type == "MatMul" and n.input[1] in types}  # fmt: skip
    name = planted[1].removeprefix("encoder/")
    assert products.pop(name) == TensorProto.FLOAT
    assert set(products.values()) == {TensorProto.FLOAT16}
    assert "Cast" in {node.op_type for node in model.graph.node}
    piece = chosen[0].piece("encoder")
    edges = {edge.name: edge.dtype for edge in piece.outputs}
    assert piece.precision == "fp16"
    assert edges == {"early": "float16", "deep": "float32"}  # deep has the massive channels' norms


def test_without_risks_all_is_float16_and_verify_holds_it_to_the_budget(
    bundle, tmp_path, monkeypatch
):
    halves, decision = choose_types(bundle, [sample("S", 0)], sample("E", 3), 0.98)
    assert (decision.half_flops, decision.float32) == (1.0, {})
    mixed = export_mixed(bundle, tmp_path / "half.uino", halves, decision)
    for name in ("encoder.weights", "prompt.weights"):
        size = mixed.path(name).stat().st_size / bundle.path(name).stat().st_size
        assert size < 0.6, name
    report = verify_bundle(mixed, OnnxRuntimeBackend())
    assert report.passed, report.reason
    assert report.swaps[-1].iou_floor == 0.98  # float16's own is 0.97
    monkeypatch.setattr("uino_deploy.export.verify.mask_iou", lambda *_: 0.975)
    report = verify_bundle(mixed, OnnxRuntimeBackend())
    assert "0.9750 (at least 0.98)" in report.reason


def test_over_the_budget_whole_blocks_return_and_our_operators_together(bundle, monkeypatch):
    """Forecasts that miss the budget four times: the worst blocks go, one at a time."""
    answers = iter([False] * 4)
    monkeypatch.setattr(Effect, "keeps", lambda *_: next(answers, True))
    monkeypatch.setattr(Trials, "mixed", faked_errors)
    halves, decision = choose_types(bundle, [sample("S", 0)], sample("E", 3), 0.99)
    chain_nodes = {n.name: n for b in Chain(bundle, [sample("S", 0)]).blocks for n in b.nodes}
    stayed = {chain_nodes[name].block for name in decision.float32}
    assert {"prompt.hypercorrelation.blocks.0", "adapter.mix"} <= stayed
    ours = {name for name, node in chain_nodes.items() if node.proto.domain == DOMAIN}
    assert ours <= decision.float32.keys()
    assert {n for n, node in chain_nodes.items() if node.block == "adapter.mix"}.isdisjoint(halves)


def faked_errors(_trials, kinds, _samples=None) -> Effect:
    """Two blocks bring the error."""
    bad = {"prompt/node_conv2d_2": 1.0, "adapter/node_conv2d_1": 0.5}
    error = sum(value for name, value in bad.items() if name in kinds)
    return Effect(logits=error, mask_iou=1.0, samples=1)


def test_empty_masks_choose_nothing(bundle, monkeypatch):
    monkeypatch.setattr(Chain, "logits", lambda *_: np.full((1, 1, 4, 4), -1.0, np.float32))
    with pytest.raises(InputError, match="masks of all images are empty"):
        choose_types(bundle, [sample("S", 0)], sample("E", 3), 0.99)


def test_what_breaks_only_the_stored_example_returns_too(bundle, monkeypatch):
    """Its forecast is what a device is held to, so it must be finite."""
    culprit = "adapter/node_conv2d_1"

    def mixed(_trials, kinds, samples=None) -> Effect:
        broken = culprit in kinds and list(samples) != [0]
        return Effect(logits=None if broken else 1e-3, mask_iou=1.0, samples=1)

    monkeypatch.setattr(Trials, "mixed", mixed)
    monkeypatch.setattr(Trials, "few", lambda _trials: [0, 1])
    halves, decision = choose_types(bundle, [sample("S", 0)], sample("E", 3), 0.99)
    assert culprit in decision.float32
    assert culprit not in halves
    assert decision.example_error == 1e-3


def test_the_command_writes_the_decision(capsys, tmp_path, bundle, monkeypatch):
    def export(_model, output, **_options):
        return Bundle.open(shutil.copytree(bundle.root, output))

    monkeypatch.setattr("uino_deploy.export.exporter.export_bundle", export)
    target = tmp_path / "auto.uino"
    options = ("--preset", "tiny", "--precision", "auto", "--min-mask-iou", "0.9", "-o", target)
    code, out, err = main(capsys, "export", *options, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["decision"]["min_mask_iou"] == 0.9
    assert document["decision"]["half_flops"] == 1
    assert set(document["precision"].values()) == {"fp16"}
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["decision"] == document["decision"]
    assert Bundle.open(target).manifest.decision.samples[0].endswith(" 0")
    code, out, err = main(capsys, "export", *options)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "auto", "--precision", "encoder=fp32"], "give it alone"),
        (["--min-mask-iou", "0.9"], "--min-mask-iou needs --precision auto"),
        (["--precision", "encoder=auto"], "unknown precision 'auto'"),
    ],
)
def test_auto_stands_alone(capsys, tmp_path, options, words):
    code, out, err = main(capsys, "export", "--preset", "tiny", *options, "-o", tmp_path / "x.uino")
    assert (code, out) == (2, "")
    assert words in err


def test_a_damaged_decision_is_refused(chosen, tmp_path):
    root = shutil.copytree(chosen[0].root, tmp_path / "damaged.uino")
    text = (root / "manifest.json").read_text().replace('"half_flops":', '"half_flops":7')
    (root / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(root)


def test_the_page_has_the_figures_of_the_comparison_with_autocast():
    """Renew both with tools/compare_autocast.py."""
    page = (ROOT / "docs/precision.md").read_text("utf-8")
    section = page[page.index("<!-- autocast begins") : page.index("<!-- autocast ends")]
    rows = json.loads((ROOT / "benchmarks/data/autocast.json").read_text())
    assert {row["method"] for row in rows} == {"auto", "AutoCast"}
    lines = section.splitlines()[3:]
    for row, line in zip(rows, lines, strict=True):
        assert f"| {100 * row['half_flops']:.1f} | {row['logits_error']:.1e} |" in line
