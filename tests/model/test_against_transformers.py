"""The encoder, the decoder and the scan against transformers' models with the same weights."""

from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tests.model.helpers import LAYOUTS, as_hub_file, random_weights, relative_error
from uino_deploy.config import PRESETS, EncoderConfig
from uino_deploy.kernels import selective_scan_fn
from uino_deploy.model import load_dinov2, load_sam_decoder

# float32 against float32, the same operations in another order: 1e-6 is seen.
TOLERANCE = 1e-5


def small_encoder(registers: int) -> EncoderConfig:
    return EncoderConfig(48, 4, 3, 2, (1, 3, 4), registers, pretrained_grid=5)


def dinov2(transformers: ModuleType, config: EncoderConfig, grid: int, seed: int):
    """Return transformers' model of a configuration with random weights."""
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    model = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            patch_size=config.patch,
            image_size=grid * config.patch,
            **registers,
        )
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(random_weights(shapes, seed))
    return model.eval()


@torch.no_grad()
def dinov2_tokens(model, config: EncoderConfig, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return what our encoder returns, from transformers' hidden states."""
    hidden = model(image, output_hidden_states=True).hidden_states
    after = [model.layernorm(h)[:, 1 + config.registers :] for h in hidden]  # [0] is the embedding
    deep = torch.stack([after[number] for number in config.correlation_layers], dim=1)
    return after[config.early_layer], deep


def check_encoder(encoder, model, grid: int) -> None:
    config = encoder.config
    side = grid * config.patch
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(grid))
    with torch.no_grad():
        got = encoder(image)
    for ours, theirs in zip(got, dinov2_tokens(model, config, image), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("name_in_file", [as_hub_file, str], ids=["hub", "modules"])
def test_encoder_at_the_pretrained_size(transformers, tmp_path, registers, name_in_file):
    config = small_encoder(registers)
    model = dinov2(transformers, config, grid=5, seed=registers)
    weights = {name_in_file(name): tensor for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    check_encoder(load_dinov2(tmp_path / "model.safetensors", config), model, grid=5)


@pytest.mark.parametrize("grid", [3, 8])
def test_encoder_with_registers_interpolates_alike(transformers, tmp_path, grid):
    config = small_encoder(registers=4)
    model = dinov2(transformers, config, grid=5, seed=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    check_encoder(load_dinov2(tmp_path / "model.safetensors", config), model, grid)


@pytest.mark.parametrize("grid", [3, 8])
def test_encoder_without_registers_on_the_same_position_embedding(transformers, tmp_path, grid):
    # transformers resizes it otherwise than the official code, so it is handed ours, resized;
    # test_encoder.py holds the resizing itself against the official formula.
    config = small_encoder(registers=0)
    weights = dinov2(transformers, config, grid=5, seed=2).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    encoder = load_dinov2(tmp_path / "model.safetensors", config)
    model = dinov2(transformers, config, grid, seed=2)
    positions = encoder.position_embedding(grid).detach()
    model.load_state_dict({**weights, "embeddings.position_embeddings": positions})
    check_encoder(encoder, model, grid)


def test_real_vit_small_with_registers_interpolated(transformers, tmp_path):
    config = PRESETS["vits14-reg"].encoder
    model = dinov2(transformers, config, grid=config.pretrained_grid, seed=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = load_dinov2(tmp_path / "model.safetensors")
    assert encoder.config == config
    check_encoder(encoder, model, grid=16)


# Official names of SAM's decoder -> those of transformers.
SAM_NAMES = {
    "output_upscaling.0.": "upscale_conv1.",
    "output_upscaling.1.": "upscale_layer_norm.",
    "output_upscaling.3.": "upscale_conv2.",
    ".norm": ".layer_norm",
    "layers.0.": "proj_in.",
    "layers.1.": "layers.0.",
    "layers.2.": "proj_out.",
}


def sam_name(name: str) -> str:
    name = name.removeprefix("mask_decoder.")
    in_transformer = name.startswith("transformer.")
    for official, theirs in SAM_NAMES.items():
        if in_transformer == (official == ".norm"):
            # Only the last layers.N of a name is a perceptron's.
            head, found, tail = name.rpartition(official)
            if found:
                return head + theirs + tail
    return name


def sam(transformers: ModuleType, grid: int):
    """Return transformers' SAM with the published decoder, and hardly an image encoder."""
    vision = transformers.SamVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=16 * grid
    )
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config=transformers.SamPromptEncoderConfig(image_size=16 * grid),
        # transformers' default eps, 1e-6, is not that of the published code.
        mask_decoder_config=transformers.SamMaskDecoderConfig(layer_norm_eps=1e-5),
    )
    return transformers.SamModel(config).eval()


@pytest.mark.parametrize("file", ["sam_vit_b_01ec64", "sam_vit_h_4b8939"])
@pytest.mark.parametrize("grid", [16, 37])
def test_mask_decoder(transformers, tmp_path, file, grid):
    shapes = LAYOUTS[file]
    used = {name: s for name, s in shapes.items() if not name.startswith("image_encoder.")}
    weights = random_weights(used, seed=grid)
    gaussian = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    # The image encoder is in the file, and takes no room in it.
    unused = {name: torch.zeros(1).expand(s) for name, s in shapes.items() if name not in used}
    torch.save({**unused, **weights}, tmp_path / "sam.pth")
    decoder = load_sam_decoder(tmp_path / "sam.pth")

    model = sam(transformers, grid)
    theirs = {sam_name(n): w for n, w in weights.items() if n.startswith("mask_decoder.")}
    model.mask_decoder.load_state_dict(theirs)
    model.shared_image_embedding.positional_embedding.data = weights[gaussian]

    generator = torch.Generator().manual_seed(grid)
    embedding, dense = torch.randn(2, 2, 256, grid, grid, generator=generator)
    sparse = torch.randn(2, 2, 256, generator=generator)
    with torch.no_grad():
        logits, iou = decoder(embedding, sparse, dense)
        position = model.get_image_wide_positional_embeddings().expand(2, -1, -1, -1)
        masks, scores = model.mask_decoder(
            embedding, position, sparse[:, None], dense, multimask_output=False
        )
    assert relative_error(logits, masks[:, 0]) < TOLERANCE
    assert relative_error(iou, scores[:, 0]) < TOLERANCE


def test_selective_scan_in_a_mamba_mixer(transformers):
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    settings = transformers.MambaConfig(hidden_size=12, state_size=5, num_hidden_layers=1)
    mixer = MambaMixer(settings, layer_idx=0).eval()
    with torch.no_grad():
        mixer.D.copy_(torch.randn_like(mixer.D))
        x = torch.randn(3, 17, 12)
        u, z = mixer.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(mixer.conv1d(u)[..., :17])
        sizes = [mixer.time_step_rank, 5, 5]
        dt, B, C = mixer.x_proj(u.transpose(1, 2)).split(sizes, dim=-1)
        y = selective_scan_fn(
            u,
            (dt @ mixer.dt_proj.weight.T).transpose(1, 2),
            -torch.exp(mixer.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            mixer.D,
            z,
            mixer.dt_proj.bias,
            delta_softplus=True,
        )
        got = mixer.out_proj(y.transpose(1, 2))
        assert relative_error(got, mixer(x)) < TOLERANCE
