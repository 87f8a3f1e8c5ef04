"""The encoder's position embedding against the official formula, and what the encoder reads."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.model.helpers import relative_error
from uino_deploy.config import EncoderConfig
from uino_deploy.model import DinoVisionTransformer

CONFIG = EncoderConfig(24, 3, 2, 1, (2, 3), pretrained_grid=5)


def make(config: EncoderConfig) -> DinoVisionTransformer:
    torch.manual_seed(0)
    encoder = DinoVisionTransformer(config).eval()
    torch.nn.init.normal_(encoder.pos_embed)
    return encoder


def cubic_weights(side: int, grid: int, scale: float) -> np.ndarray:
    """Return the [grid, side] matrix of a bicubic resize (a = -0.75, edges repeated).

    Output cell i lies at (i + 0.5) / scale - 0.5 of the input.
    """
    a = -0.75
    matrix = np.zeros((grid, side))
    for i in range(grid):
        centre = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            matrix[i, min(max(j, 0), side - 1)] += near if x <= 1 else far
    return matrix


@pytest.mark.parametrize("grid", [3, 4, 7, 11])
def test_position_embedding_without_registers_is_the_official_one(grid):
    # dinov2/models/vision_transformer.py: scale factors (grid + 0.1) / side, not antialiased.
    encoder = make(CONFIG)
    matrix = cubic_weights(5, grid, (grid + 0.1) / 5)
    patches = encoder.pos_embed[0, 1:].detach().double().numpy().reshape(5, 5, -1)
    expected = np.einsum("yi,xj,ijc->yxc", matrix, matrix, patches).reshape(grid**2, -1)
    got = encoder.position_embedding(grid)
    assert relative_error(got[0, 1:], torch.from_numpy(expected)) < 1e-5
    assert torch.equal(got[:, :1], encoder.pos_embed[:, :1])


def test_position_embedding_at_the_pretrained_size_is_untouched():
    encoder = make(CONFIG)
    assert encoder.position_embedding(5) is encoder.pos_embed


def test_register_models_resize_to_size_and_antialiased():
    # A constant stays constant, and shrinking averages: every input cell has its say.
    encoder = make(dataclasses.replace(CONFIG, registers=2))
    with torch.no_grad():
        encoder.pos_embed.fill_(3)
    assert torch.allclose(encoder.position_embedding(2), torch.full((1, 5, 24), 3.0))
    for cell in range(1, 26):
        with torch.no_grad():
            encoder.pos_embed.zero_()
            encoder.pos_embed[:, cell] = 1
        assert encoder.position_embedding(2)[:, 1:].abs().max() > 1e-3


def test_only_the_blocks_that_are_read_run():
    encoder = make(dataclasses.replace(CONFIG, correlation_layers=(2,)))
    encoder.blocks[2] = torch.nn.Identity()  # would have no effect on what is read
    image = torch.randn(1, 3, 70, 70)
    early, deep = encoder(image)
    assert (early.shape, deep.shape) == ((1, 25, 24), (1, 1, 25, 24))
    whole = make(dataclasses.replace(CONFIG, correlation_layers=(2,)))(image)
    assert torch.equal(whole[1], deep)


def test_layers_come_in_the_order_of_the_configuration():
    image = torch.randn(2, 3, 70, 70)
    _, deep = make(CONFIG)(image)
    _, turned = make(dataclasses.replace(CONFIG, correlation_layers=(3, 2)))(image)
    assert torch.equal(deep.flip(1), turned)
