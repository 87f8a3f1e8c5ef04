"""Every published checkpoint holds exactly the tensors that the model asks for."""

import pytest
import torch
from torch import nn

from tests.model.helpers import LAYOUTS, as_hub_file
from uino_deploy.config import PRESETS, DecoderConfig
from uino_deploy.model import DinoVisionTransformer, MaskDecoder
from uino_deploy.model.layouts import fitting_presets, recognise

PRESET = {
    "dinov2_vits14_pretrain": "vits14",
    "dinov2_vitb14_pretrain": "vitb14",
    "dinov2_vitl14_pretrain": "vitl14",
    "dinov2_vits14_reg4_pretrain": "vits14-reg",
    "dinov2_vitb14_reg4_pretrain": "vitb14-reg",
    "dinov2_vitl14_reg4_pretrain": "vitl14-reg",
    "hf_dinov2_small": "vits14",
    "hf_dinov2_base": "vitb14",
    "hf_dinov2_large": "vitl14",
    "hf_dinov2_with_registers_small": "vits14-reg",
    "hf_dinov2_with_registers_base": "vitb14-reg",
    "hf_dinov2_with_registers_large": "vitl14-reg",
}
SAM = ["sam_vit_b_01ec64", "sam_vit_h_4b8939"]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_every_published_layout_is_tested():
    assert {*PRESET, *SAM} == set(LAYOUTS)


@pytest.mark.parametrize("file", PRESET)
def test_dinov2_files_fill_their_preset(file):
    check_fills_preset(LAYOUTS[file], PRESET[file])


@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
@pytest.mark.parametrize("file", [file for file in PRESET if file.startswith("hf_")])
def test_hub_files_fill_their_preset(file, prefix):
    shapes = {prefix + as_hub_file(name): shape for name, shape in LAYOUTS[file].items()}
    check_fills_preset(shapes, PRESET[file])


def check_fills_preset(shapes: dict[str, tuple[int, ...]], preset: str) -> None:
    layout = recognise(shapes)
    assert layout is not None
    assert layout.holds == "dinov2"
    assert list(fitting_presets(layout, shapes)) == [preset]
    with torch.device("meta"):
        encoder = DinoVisionTransformer(PRESETS[preset].encoder)
    assert layout.asked(shapes_of(encoder)) == layout.held(shapes)


@pytest.mark.parametrize("file", SAM)
def test_sam_files_fill_the_decoder(file):
    layout = recognise(LAYOUTS[file])
    assert layout is not None
    assert layout.holds == "sam"
    with torch.device("meta"):
        decoder = MaskDecoder(DecoderConfig())
    assert layout.asked(shapes_of(decoder)) == layout.held(LAYOUTS[file])


def test_other_files_are_not_recognised():
    assert recognise({"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}) is None
    assert recognise({}) is None
