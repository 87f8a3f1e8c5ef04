"""inspect: presets, checkpoints of several layouts, ONNX files, supports, refusals."""

import json
import os
import re

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from uino_deploy.bundle.support import Support
from uino_deploy.cli import cli
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.errors import BundleError, CheckpointError, InputError
from uino_deploy.inspection import describe_layout, inspect

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from uino_deploy.model import UinoFSS, save_checkpoint  # noqa: E402 - needs torch
from uino_deploy.model.checkpoint import load_dinov2  # noqa: E402
from uino_deploy.model.encoder import DinoVisionTransformer  # noqa: E402


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["inspect", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def dinov2_shapes(preset: str, layout: str = "official") -> dict[str, tuple[int, ...]]:
    """Return the few names and shapes by which a layout is recognised."""
    encoder = PRESETS[preset].encoder
    patch = (encoder.width, 3, encoder.patch, encoder.patch)
    registers = (1, encoder.registers, encoder.width)
    if layout == "official":
        names = ("cls_token", "patch_embed.proj.weight", "register_tokens", "blocks.{}.norm1.bias")
    else:
        names = (
            f"{layout}embeddings.cls_token",
            f"{layout}embeddings.patch_embeddings.projection.weight",
            f"{layout}embeddings.register_tokens",
            layout + "encoder.layer.{}.norm1.bias",
        )
    shapes = {names[0]: (1, 1, encoder.width), names[1]: patch}
    if encoder.registers:
        shapes[names[2]] = registers
    shapes |= {names[3].format(block): (encoder.width,) for block in range(encoder.depth)}
    return shapes


def test_vitb14_counts_are_the_papers():
    counts = inspect("vitb14")["parameters"]
    assert counts["full"]["segmenter"] == 5_579_828  # the paper's 5.6 M
    semantic = counts["full"]["prompt_generator.semantic"]
    assert semantic + counts["full"]["prompt_generator.similarity"] == 70_880  # its 0.07 M
    assert counts["comp"]["prompt_generator"] == 70_880
    assert counts["full"]["encoder"] + counts["full"]["segmenter"] == counts["full"]["total"]


def test_a_preset_is_shown_for_every_variant():
    text = shown("vitb14")
    assert "5,579,828" in text
    assert all(variant in text for variant in ("comp-star", "comp", "full", "cp4d"))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "tiny"])
@pytest.mark.parametrize(
    "layout", ["official", "", "dinov2."], ids=["official", "huggingface", "nested"]
)
def test_dinov2_layouts_are_recognised(preset, layout):
    expected = "official" if layout == "official" else "Hugging Face"
    assert describe_layout(dinov2_shapes(preset, layout)) == f"DINOv2 ({expected}), fits {preset}"


def test_other_layouts():
    sam = {"mask_decoder.iou_token.weight": (1, 256)}
    assert describe_layout(sam) == "Segment Anything (official)"
    assert describe_layout({"fc.weight": (10, 10)}) == "unknown layout"
    odd = {"cls_token": (1, 1, 48), "blocks.0.norm1.bias": (48,)}
    assert describe_layout(odd) == "DINOv2 (official), fits no preset"


def test_our_own_checkpoint(tmp_path):
    path = tmp_path / "tiny.safetensors"
    with torch.random.fork_rng():
        model = UinoFSS(UinoConfig.from_preset("tiny"))
    made = {"seed": 3, "note": "long " * 30, "stages": [{"steps": 2600}] * 4, "command": None}
    save_checkpoint(model, path, made)
    found = inspect(str(path))
    assert found["layout"] == "uino-deploy"
    assert found["metadata"]["config"]["preset"] == "tiny"
    assert found["metadata"]["provenance"] == made
    lines = shown(str(path)).splitlines()
    assert "provenance: seed 3; --json also has note, stages" in lines
    assert any(
        line.startswith("config: image_size 112, preset tiny, variant full;") for line in lines
    )


def test_safetensors_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {n: np.zeros(s, np.float16) for n, s in dinov2_shapes("vits14-reg", "").items()}
    save_file(tensors, path, {"format": "pt"})
    found = inspect(str(path))
    assert found["layout"] == "DINOv2 (Hugging Face), fits vits14-reg"
    assert found["dtypes"] == {"F16": len(tensors)}
    assert "vits14-reg" in shown(str(path))


def test_pth_checkpoint(tmp_path):
    path = tmp_path / "dinov2.pth"
    torch.save({n: torch.zeros(s) for n, s in dinov2_shapes("vits14").items()}, path)
    document = json.loads(shown(str(path), "--json"))
    assert document["layout"] == "DINOv2 (official), fits vits14"
    assert document["dtypes"] == {"float32": document["tensors"]}


class Payload:
    """The command that a malicious checkpoint would run on loading."""

    def __reduce__(self):
        return (print, ("executed",))


def test_pth_with_code_in_it_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"a": Payload()}, path)
    with pytest.raises(CheckpointError, match="as tensors only"):
        inspect(str(path))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)]], ids=["no tensor", "a list"])
def test_pth_without_a_dictionary_of_tensors(tmp_path, content):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not contain a dictionary of tensors"):
        inspect(str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
def test_garbage_is_refused(tmp_path, suffix):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(b"\xff" * 200)
    with pytest.raises(InputError, match="garbage"):
        inspect(str(path))


def test_onnx_file(tmp_path):
    path = tmp_path / "piece.onnx"
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.zeros((4, 3), np.float32), "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    found = inspect(str(path))
    assert found["inputs"] == [{"name": "x", "shape": ["batch", 4], "dtype": "float"}]
    assert found["operators"] == {"MatMul": 1}
    assert found["weights"] == {"float": 12}
    assert "[batch, 4]" in shown(str(path))


def test_an_onnx_type_of_a_later_version_is_shown_by_its_number(tmp_path):
    path = tmp_path / "later.onnx"
    weight = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    edge = onnx.helper.make_tensor_value_info("x", 200, [3])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [edge], [], [weight]))
    model.graph.initializer[0].data_type = 128
    path.write_bytes(model.SerializeToString())
    found = inspect(str(path))
    assert found["weights"] == {"type 128": 3}
    assert found["inputs"] == [{"name": "x", "shape": [3], "dtype": "type 200"}]


def test_support_file(tmp_path):
    path = tmp_path / "bottle.safetensors"
    support = Support(
        name="bottle",
        shots=1,
        precision="fp32",
        model="tiny full 112 px",
        fingerprint="f" * 64,
        preprocess="p" * 64,
        prototypes=np.ones((2, 8), np.float32),
    )
    support.save(path)
    found = inspect(str(path))
    assert (found["kind"], found["name"], found["shots"]) == ("support", "bottle", 1)
    assert "class 'bottle', 1 shot," in shown(str(path))


def test_what_is_not_there_or_unknown(tmp_path):
    with pytest.raises(InputError, match="neither a file nor a preset") as raised:
        inspect("vitb15")
    assert "vitb14" in raised.value.hint
    with pytest.raises(BundleError, match="is not a bundle"):
        inspect(str(tmp_path))
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match="kind of file"):
        inspect(str(text))


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000, "{"])
@pytest.mark.parametrize("key", ["config", "provenance"])
def test_damaged_metadata_of_our_own_is_refused(tmp_path, key, text):
    own = {"format": "uino-checkpoint", "format_version": "1", "config": "{}", "provenance": "{}"}
    save_file({"prompt_generator.w": np.zeros(2, np.float32)}, tmp_path / "c.safetensors",
              {**own, key: text})  # fmt: skip
    with pytest.raises(CheckpointError, match=f"damaged metadata: {key}"):
        inspect(str(tmp_path / "c.safetensors"))


def test_a_wrapped_checkpoint_says_what_is_around_it(tmp_path):
    weights = {"module.blocks.0.norm1.bias": torch.zeros(2)}
    torch.save({"model": weights, "epoch": 1}, tmp_path / "w.pth")
    described = inspect(str(tmp_path / "w.pth"))
    assert described["layout"].endswith("(under 'model', without 'module.')")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth", ".onnx"])
def test_a_pipe_is_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(InputError, match="is a device, pipe or socket"):
        inspect(str(tmp_path / f"pipe{suffix}"))


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"epoch": 3}, "holds a int under 'epoch', not a tensor"),
        ({"x": torch.ones(2).to_sparse()}, "tensor x is sparse"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "tensor x is sparse, quantised or complex"),
        ({}, "does not fit the model: .* missing"),
    ],
)
def test_a_pth_that_export_refuses_says_so(tmp_path, beside, words):
    path = tmp_path / "c.pth"
    torch.save({**{n: torch.zeros(s) for n, s in dinov2_shapes("vits14").items()}, **beside}, path)
    found = inspect(str(path))
    assert re.search(words, found["refused"])
    with pytest.raises(CheckpointError, match=words):
        load_dinov2(path)
    done = CliRunner().invoke(cli, ["inspect", str(path)])
    assert re.search(f"warning: export takes no weights from it: .*{words}", done.stderr)


def test_what_export_takes_is_not_refused(tmp_path):
    model = UinoFSS(UinoConfig.from_preset("tiny"))
    save_checkpoint(model, tmp_path / "own.safetensors", {})
    assert inspect(str(tmp_path / "own.safetensors"))["refused"] == ""
    torch.save(model.state_dict(), tmp_path / "own.pth")
    assert "no configuration" in inspect(str(tmp_path / "own.pth"))["refused"]
    with torch.device("meta"):
        encoder = DinoVisionTransformer(PRESETS["vits14"].encoder).state_dict()
    torch.save({"model": encoder}, tmp_path / "dinov2.pth")
    assert inspect(str(tmp_path / "dinov2.pth"))["refused"] == ""


def test_an_unknown_layout_is_refused_with_its_names(tmp_path):
    save_file({"fc.weight": np.zeros((2, 2), np.float32)}, tmp_path / "c.safetensors")
    assert "its tensors are fc.weight" in inspect(str(tmp_path / "c.safetensors"))["refused"]
