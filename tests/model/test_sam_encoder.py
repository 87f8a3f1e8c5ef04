"""SAM's image encoder against transformers' with the same weights; official checkpoints' names."""

from pathlib import Path

import pytest
import torch

from tests.model.helpers import LAYOUTS, random_weights, relative_error
from uino_deploy.errors import CheckpointError
from uino_deploy.model.checkpoint import load_sam_image_encoder
from uino_deploy.model.sam_encoder import SamEncoderConfig, SamImageEncoder

TOLERANCE = 1e-5

# A window that does not divide the grid (padding), one that does, and blocks of both kinds.
SMALL = SamEncoderConfig(48, 4, 3, (1, 3), window=4, image_size=112, embedding=32)


def filled(config: SamEncoderConfig, seed: int) -> SamImageEncoder:
    encoder = SamImageEncoder(config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(random_weights(shapes, seed))
    return encoder


THEIR_NAMES = {
    "patch_embed.proj": "patch_embed.projection",
    "blocks.": "layers.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
}


@pytest.mark.parametrize("window", [4, 7])
@torch.no_grad()
def test_against_transformers(transformers, window):
    config = SamEncoderConfig(48, 4, 3, (1, 3), window=window, image_size=112, embedding=32)
    ours = filled(config, seed=window)
    theirs = transformers.SamVisionModel(
        transformers.SamVisionConfig(
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=3,
            output_channels=32,
            image_size=112,
            window_size=window,
            global_attn_indexes=[1, 3],
            mlp_dim=4 * 48,
        )
    ).eval()
    renamed = {}
    for name, tensor in ours.state_dict().items():
        their_name = name
        for official, other in THEIR_NAMES.items():
            their_name = their_name.replace(official, other)
        renamed[f"vision_encoder.{their_name}"] = tensor
    theirs.load_state_dict(renamed)
    image = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    expected = theirs(image).last_hidden_state
    assert expected.std() > 0.1
    assert relative_error(ours(image), expected) < TOLERANCE


def official_file(encoder: SamImageEncoder, path: Path) -> Path:
    """Write an encoder as the official checkpoints hold it, beside a decoder's tensor."""
    tensors = {f"image_encoder.{name}": t for name, t in encoder.state_dict().items()}
    torch.save({**tensors, "mask_decoder.iou_token.weight": torch.zeros(1, 32)}, path)
    return path


@torch.no_grad()
def test_sizes_are_read_off_a_file(tmp_path):
    encoder = filled(SMALL, seed=1)
    loaded = load_sam_image_encoder(official_file(encoder, tmp_path / "sam.pth"))
    assert loaded.config == SMALL
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    image = torch.randn(1, 3, 112, 112)
    torch.testing.assert_close(loaded(image), encoder(image))


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("sam_vit_b_01ec64", SamEncoderConfig(768, 12, 12, (2, 5, 8, 11))),
        ("sam_vit_h_4b8939", SamEncoderConfig(1280, 32, 16, (7, 15, 23, 31))),
    ],
)
def test_official_names_and_shapes(file, config):
    official = {
        name.removeprefix("image_encoder."): tuple(shape)
        for name, shape in LAYOUTS[file].items()
        if name.startswith("image_encoder.")
    }
    with torch.device("meta"):
        ours = SamImageEncoder(config)
    assert {name: tuple(t.shape) for name, t in ours.state_dict().items()} == official


def test_a_file_without_an_image_encoder_is_refused(tmp_path):
    path = tmp_path / "decoder.pth"
    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1, 32)}, path)
    with pytest.raises(CheckpointError, match="contains no Segment Anything image encoder"):
        load_sam_image_encoder(path)
    encoder = filled(SMALL, seed=1)
    torch.save({"blocks.0.x": torch.zeros(1)}, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match="not Segment Anything's"):
        load_sam_image_encoder(tmp_path / "dino.pth")
    broken = official_file(encoder, tmp_path / "broken.pth")
    tensors = torch.load(broken)
    del tensors["image_encoder.neck.2.weight"]
    torch.save(tensors, broken)
    with pytest.raises(CheckpointError, match=r"missing image_encoder\.neck\.2\.weight"):
        load_sam_image_encoder(broken)
