"""Reading and writing checkpoints: every layout, and every way in which a file can be wrong."""

import json
import os
import pickle
import random
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.model.helpers import LAYOUTS, as_hub_file, random_weights
from uino_deploy.config import PRESETS, VARIANTS, EncoderConfig, UinoConfig
from uino_deploy.errors import CheckpointError, OutputExists
from uino_deploy.model import (
    DinoVisionTransformer,
    UinoFSS,
    load_checkpoint,
    load_dinov2,
    load_sam_decoder,
    save_checkpoint,
)
from uino_deploy.model import checkpoint as checkpoint_module
from uino_deploy.model.checkpoint import read_checkpoint_metadata
from uino_deploy.model.layouts import recognise

SMALL = EncoderConfig(48, 2, 3, 1, (1, 2), registers=2, pretrained_grid=4)


def small_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of `SMALL` in DINOv2's official layout, its mask token included."""
    state = DinoVisionTransformer(SMALL).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return random_weights({**shapes, "mask_token": (1, SMALL.width)}, seed)


def holds(module: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Tell whether a module's tensors are exactly these, as float32."""
    state = module.state_dict()
    return state.keys() == weights.keys() and all(
        torch.equal(state[name], tensor.float()) for name, tensor in weights.items()
    )


def layout_title(path) -> str:
    """Return the title of a file's layout."""
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    return recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()}).title


# --- published files ---


def test_official_dinov2(tmp_path):
    weights = random_weights(LAYOUTS["dinov2_vits14_reg4_pretrain"], seed=1)
    torch.save(weights, tmp_path / "dinov2.pth")
    encoder = load_dinov2(tmp_path / "dinov2.pth")
    assert encoder.config == PRESETS["vits14-reg"].encoder
    del weights["mask_token"]
    assert holds(encoder, weights)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert layout_title(tmp_path / "dinov2.pth") == "DINOv2 (official)"


@pytest.mark.parametrize(
    ("prefix", "name_in_file"),
    [("", as_hub_file), ("dinov2_with_registers.", str)],
    ids=["hub", "modules, with a prefix"],
)
def test_hugging_face_dinov2(tmp_path, prefix, name_in_file):
    weights = random_weights(LAYOUTS["hf_dinov2_with_registers_small"], seed=2)
    named = {prefix + name_in_file(name): tensor for name, tensor in weights.items()}
    save_file(named, tmp_path / "model.safetensors")
    encoder = load_dinov2(tmp_path / "model.safetensors")
    assert encoder.config == PRESETS["vits14-reg"].encoder
    parts = [weights[f"encoder.layer.11.attention.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(encoder.blocks[11].attn.qkv.weight, torch.cat(parts))
    gamma = weights["encoder.layer.3.layer_scale2.lambda1"]
    assert torch.equal(encoder.blocks[3].ls2.gamma, gamma)
    assert torch.equal(encoder.norm.bias, weights["layernorm.bias"])
    assert layout_title(tmp_path / "model.safetensors") == "DINOv2 (Hugging Face)"


@pytest.mark.parametrize("file", ["sam_vit_b_01ec64", "sam_vit_h_4b8939"])
def test_sam(tmp_path, file):
    weights = {  # the image encoder is in the file, and takes no room in it
        name: torch.zeros(1).expand(shape)
        for name, shape in LAYOUTS[file].items()
        if name.startswith("image_encoder.")
    }
    kept = {name: shape for name, shape in LAYOUTS[file].items() if name not in weights}
    weights.update(random_weights(kept, seed=3))
    torch.save(weights, tmp_path / "sam.pth")
    decoder = load_sam_decoder(tmp_path / "sam.pth")
    position = "pe_layer.positional_encoding_gaussian_matrix"
    expected = {
        name.removeprefix("mask_decoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("mask_decoder.")
    }
    assert holds(decoder, {position: weights[f"prompt_encoder.{position}"], **expected})
    assert not decoder.training
    assert layout_title(tmp_path / "sam.pth") == "Segment Anything (official)"


def test_files_before_torch_1_6_and_half_precision(tmp_path):
    weights = {name: tensor.half() for name, tensor in small_weights().items()}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    encoder = load_dinov2(tmp_path / "old.pth", SMALL)
    del weights["mask_token"]
    assert holds(encoder, weights)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_model_outlives_its_file(tmp_path):
    weights = small_weights()
    path = tmp_path / "dinov2.pth"
    torch.save(weights, path)
    encoder = load_dinov2(path, SMALL)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    del weights["mask_token"]
    assert holds(encoder, weights)


# --- published files that do not fit ---


def refusal(path, load=load_dinov2, *arguments) -> str:
    """Return the one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path, *arguments)
    assert caught.value.exit_code == 2
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def test_differences_are_named(tmp_path):
    weights = small_weights()
    del weights["blocks.0.norm1.bias"]
    del weights["norm.weight"]
    weights["head.weight"] = torch.zeros(3)
    weights["blocks.1.attn.proj.weight"] = torch.zeros(48, 40)
    torch.save(weights, tmp_path / "dinov2.pth")
    line = refusal(tmp_path / "dinov2.pth", load_dinov2, SMALL)
    assert line.endswith(
        "does not fit the model: 2 missing, first blocks.0.norm1.bias; unexpected head.weight; "
        "misshaped blocks.1.attn.proj.weight (48x40, expected 48x48)"
    )


def test_a_missing_part_of_a_joined_tensor_is_named_as_in_the_file(tmp_path):
    weights = random_weights(LAYOUTS["hf_dinov2_small"], seed=0)
    named = {as_hub_file(name): tensor for name, tensor in weights.items()}
    del named["encoder.layer.5.attention.attention.key.bias"]
    save_file(named, tmp_path / "model.safetensors")
    line = refusal(tmp_path / "model.safetensors")
    assert "missing encoder.layer.5.attention.attention.key.bias" in line


def test_another_size_is_refused_and_the_fitting_preset_is_named(tmp_path):
    shapes = LAYOUTS["dinov2_vitb14_pretrain"]
    torch.save({n: torch.zeros(1).expand(s) for n, s in shapes.items()}, tmp_path / "b.pth")
    line = refusal(tmp_path / "b.pth", load_dinov2, PRESETS["vits14"].encoder)
    assert "misshaped, first cls_token (1x1x768, expected 1x1x384)" in line
    assert line.endswith("its sizes are those of preset vitb14")


def test_a_size_of_no_preset(tmp_path):
    torch.save(small_weights(), tmp_path / "dinov2.pth")
    assert "matches no preset's encoder" in refusal(tmp_path / "dinov2.pth")
    nothing = {"blocks.0.norm1.weight": torch.zeros(())}
    torch.save(nothing, tmp_path / "nothing.pth")
    assert "matches no preset's encoder" in refusal(tmp_path / "nothing.pth")


def test_the_wrong_kind_is_named(tmp_path):
    torch.save(small_weights(), tmp_path / "dinov2.pth")
    line = refusal(tmp_path / "dinov2.pth", load_sam_decoder)
    assert line.endswith("is a DINOv2 (official) checkpoint, not Segment Anything's")
    assert "not a uino-deploy checkpoint" in refusal(tmp_path / "dinov2.pth", load_checkpoint)
    save_checkpoint(UinoFSS(UinoConfig.from_preset("tiny")), tmp_path / "own.safetensors", {})
    assert "uino-deploy checkpoint, not DINOv2's" in refusal(tmp_path / "own.safetensors")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    line = refusal(tmp_path / "resnet.pth")
    assert "has an unknown layout; its tensors are conv1.weight" in line
    torch.save({}, tmp_path / "empty.pth")
    assert "none at all" in refusal(tmp_path / "empty.pth")


# --- files that are no checkpoints ---


class Payload:
    """Creates a folder when unpickled carelessly."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("form", ["torch", "torch before 1.6", "pickle 2", "pickle 4"])
def test_code_in_a_file_is_never_run(tmp_path, form):
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    content = {"cls_token": Payload(str(trap))}
    if form.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    line = refusal(path)
    assert "would run code when loaded (it names" in line or "never loaded" in line
    assert ("mkdir" in line) == (form != "pickle 4")  # torch reads no such pickle that far
    assert not trap.exists()


def test_more_than_tensors_is_refused(tmp_path):
    path = tmp_path / "training.pth"
    torch.save({**small_weights(), "epoch": 3}, path)
    assert "holds a int under 'epoch', not a tensor" in refusal(path)
    torch.save({"optimizer": {}, "epoch": 3}, path)
    assert "holds a dict under 'optimizer', not a tensor" in refusal(path)
    torch.save([torch.zeros(2)], path)
    assert "holds a list, not named tensors" in refusal(path)
    torch.save(torch.zeros(2), path)
    assert "holds a Tensor, not named tensors" in refusal(path)


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing.pth"):
        assert refusal(path).endswith("is not a file")
        assert refusal(path, load_checkpoint).endswith("is not a file")


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_truncated_files(tmp_path, form):
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(small_weights(), path)
    else:
        torch.save(small_weights(), path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    rng = random.Random(form)
    lengths = [0, 1, 8, 9, 100, len(whole) // 2, len(whole) - 1]
    for length in lengths + [rng.randrange(len(whole)) for _ in range(20)]:
        path.write_bytes(whole[:length])
        assert "truncated" in refusal(path, load_dinov2, SMALL)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n" * 3, b"<html>"]
)
def test_what_was_downloaded_in_place_of_a_file(tmp_path, content):
    (tmp_path / "dinov2.pth").write_bytes(content)
    assert "neither safetensors nor a PyTorch file" in refusal(tmp_path / "dinov2.pth")


# --- our own ---


@pytest.fixture
def tiny() -> UinoFSS:
    torch.manual_seed(4)
    model = UinoFSS(UinoConfig.from_preset("tiny"))
    for buffer in model.buffers():  # running statistics that are not their defaults
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_bit_for_bit(tmp_path, variant):
    torch.manual_seed(5)
    model = UinoFSS(UinoConfig.from_preset("tiny", variant, image_size=84))
    save_checkpoint(model, tmp_path / "a.safetensors", {"variant": variant})
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    assert holds(loaded, model.state_dict())
    save_checkpoint(loaded, tmp_path / "b.safetensors", {"variant": variant})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, tiny):
    save_checkpoint(tiny, tmp_path / "full.safetensors", {})
    save_checkpoint(tiny, tmp_path / "half.safetensors", {}, torch.float16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.52 * sizes[1]
    loaded = load_checkpoint(tmp_path / "half.safetensors").state_dict()
    for name, tensor in tiny.state_dict().items():
        rounded = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], rounded.to(tensor.dtype))
        assert loaded[name].dtype == tensor.dtype


def test_metadata(tmp_path, tiny):
    path = tmp_path / "own.safetensors"
    provenance = {"recipe": "démo", "steps": 3, "classes": ["a", "b"]}
    save_checkpoint(tiny, path, provenance)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert {key: metadata[key] for key in ("format", "format_version")} == {
        "format": "uino-checkpoint",
        "format_version": "1",
    }
    assert json.loads(metadata["config"]) == json.loads(json.dumps(tiny.config.to_dict()))
    read = read_checkpoint_metadata(path)
    assert (read.config, read.provenance) == (tiny.config, provenance)
    assert layout_title(path) == "uino-deploy"


def test_loading_leaves_the_random_state_alone(tmp_path, tiny):
    save_checkpoint(tiny, tmp_path / "own.safetensors", {})
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "own.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_output_is_replaced_only_by_force(tmp_path, tiny):
    path = tmp_path / "own.safetensors"
    save_checkpoint(tiny, path, {"number": 1})
    with pytest.raises(OutputExists):
        save_checkpoint(tiny, path, {"number": 2})
    assert read_checkpoint_metadata(path).provenance == {"number": 1}
    save_checkpoint(tiny, path, {"number": 3}, force=True)
    assert read_checkpoint_metadata(path).provenance == {"number": 3}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(tmp_path, tiny, monkeypatch, error):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint_module, "save_file", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        save_checkpoint(tiny, tmp_path / "own.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_values_that_the_type_cannot_hold_are_refused(tmp_path, tiny):
    tiny.adapter.mix_norm.running_var.fill_(1e5)
    with pytest.raises(CheckpointError, match=r"adapter\.mix_norm\.running_var is not finite in"):
        save_checkpoint(tiny, tmp_path / "own.safetensors", {}, torch.float16)
    assert list(tmp_path.iterdir()) == []


def rewritten(path, **changes: str):
    """Return a copy of our checkpoint with other metadata."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    other = path.with_name("rewritten.safetensors")
    save_file(tensors, other, metadata)
    return other


def test_foreign_metadata_is_refused(tmp_path, tiny):
    path = tmp_path / "own.safetensors"
    save_checkpoint(tiny, path, {})
    line = refusal(rewritten(path, format_version="2"), load_checkpoint)
    assert "has format version 2, this program reads 1" in line
    assert "not a uino-deploy checkpoint" in refusal(rewritten(path, format="x"), load_checkpoint)
    for config in ("{", "{}", '{"preset": 1}', "[]", json.dumps({"image_size": 113})):
        assert "damaged metadata" in refusal(rewritten(path, config=config), load_checkpoint)


def test_a_configuration_that_is_not_the_tensors_is_refused(tmp_path, tiny):
    path = tmp_path / "own.safetensors"
    save_checkpoint(tiny, path, {})
    config = json.dumps(UinoConfig.from_preset("tiny", "cp4d").to_dict())
    line = refusal(rewritten(path, config=config), load_checkpoint)
    assert re.search(r"12 missing, first \S+mixer.*52 unexpected, first \S+mixer", line)


# --- what trainings put around the tensors ---


def chunked(weights):
    """Number the blocks as DINOv2's `block_chunks` does."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", n): t for n, t in weights.items()}


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


HEAD = {"dino_head.mlp.weight": torch.zeros(3, 3)}


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda w: prefixed("module.", w), "without 'module.'"),
        (lambda w: prefixed("_orig_mod.", prefixed("module.", w)), "without '_orig_mod.'"),
        (lambda w: {"model": w, "epoch": 3}, "under 'model'"),
        (lambda w: {"state_dict": prefixed("model.", w)}, "under 'state_dict', without 'model.'"),
        (
            lambda w: {"teacher": prefixed("backbone.", w) | HEAD, "iteration": 7},
            "under 'teacher', without 'backbone.'",
        ),
        (
            lambda w: {
                "model": prefixed("teacher.", prefixed("backbone.", w))
                | prefixed("student.", prefixed("backbone.", {n: t + 1 for n, t in w.items()}))
            },
            "under 'model', without 'teacher.'",
        ),
        (chunked, "without block chunks"),
        (lambda w: {"teacher": prefixed("backbone.", chunked(w))}, "without block chunks"),
    ],
)
def test_wrapped_weights_are_unwrapped_and_named(tmp_path, wrap, named):
    weights = small_weights()
    torch.save(wrap(weights), tmp_path / "w.pth")
    model = load_dinov2(tmp_path / "w.pth", SMALL)
    assert holds(model, {n: t for n, t in weights.items() if n != "mask_token"})
    assert named in refusal(tmp_path / "w.pth", load_dinov2)  # it fits no preset


def test_a_file_in_parts(tmp_path):
    weights = small_weights()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    listed = {name: shard for shard, held in shards.items() for name in held}
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    model = load_dinov2(index, SMALL)
    assert holds(model, {n: t for n, t in weights.items() if n != "mask_token"})
    index.write_text(json.dumps({"weight_map": {**listed, "cls_token": "../a.safetensors"}}))
    assert "no file beside it" in refusal(index)
    index.write_text(json.dumps({"weight_map": {**listed, "cls_token": ""}}))
    assert "names '', which is no file beside it" in refusal(index)
    index.write_text(json.dumps({"weight_map": {**listed, "cls_token": "c.safetensors"}}))
    assert "c.safetensors, which does not exist" in refusal(index)
    index.write_text(json.dumps({"weight_map": {**listed, "more": "a.safetensors"}}))
    assert "names more, which its files do not hold" in refusal(index)
    index.write_bytes(b"[" * 100_000)
    assert "no index" in refusal(index)


# --- values and sizes that no model has ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, tiny, value):
    weights = small_weights()
    weights["blocks.1.norm1.weight"][3] = value
    torch.save(weights, tmp_path / "w.pth")
    line = refusal(tmp_path / "w.pth", load_dinov2, SMALL)
    assert "tensor blocks.1.norm1.weight holds numbers that are not finite" in line
    save_checkpoint(tiny, tmp_path / "own.safetensors", {})
    tensors = load_file(tmp_path / "own.safetensors")
    tensors["decoder.iou_token.weight"] += value
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        save_file(tensors, tmp_path / "bad.safetensors", file.metadata())
    line = refusal(tmp_path / "bad.safetensors", load_checkpoint)
    assert "tensor decoder.iou_token.weight holds numbers" in line


@pytest.mark.parametrize(
    "change",
    [
        {"width": 1 << 31},
        {"width": 1 << 16},
        {"depth": 10**9},
        {"heads": 0},
        {"heads": 5},
        {"pretrained_grid": 60_000},
        {"correlation_layers": [1] * 1000},
    ],
)
def test_a_configuration_is_compared_before_anything_is_built(tmp_path, tiny, change, monkeypatch):
    path = tmp_path / "own.safetensors"
    save_checkpoint(tiny, path, {})
    config = tiny.config.to_dict()
    config["encoder"] |= change
    monkeypatch.setattr(checkpoint_module, "_unfilled", None)
    assert refusal(rewritten(path, config=json.dumps(config)), load_checkpoint)


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_metadata_that_no_program_wrote_is_refused(tmp_path, tiny, text):
    path = tmp_path / "own.safetensors"
    save_checkpoint(tiny, path, {})
    for key in ("config", "provenance"):
        assert "damaged metadata" in refusal(rewritten(path, **{key: text}), load_checkpoint)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: t.to(torch.complex64),
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, change):
    weights = small_weights()
    weights["blocks.1.attn.proj.weight"] = change(weights["blocks.1.attn.proj.weight"])
    torch.save(weights, tmp_path / "w.pth")
    refusal(tmp_path / "w.pth", load_dinov2, SMALL)
