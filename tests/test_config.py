"""Configurations: presets, variants, and refused values."""

import pytest

from uino_deploy.config import PRESETS, VARIANTS, UinoConfig
from uino_deploy.errors import InputError


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_survives_its_dictionary(preset, variant):
    config = UinoConfig.from_preset(preset, variant)
    assert UinoConfig.from_dict(config.to_dict()) == config


def test_sizes_follow_from_the_image_size():
    config = UinoConfig.from_preset("vitb14")
    assert (config.grid, config.tokens, config.pooled_grid, config.mask_size) == (37, 1369, 13, 148)
    assert UinoConfig.from_preset("vitb14", image_size=252).grid == 18


@pytest.mark.parametrize("size", [0, 13, 100, -14])
def test_an_image_size_off_the_patch_grid_is_refused(size):
    with pytest.raises(InputError, match="multiple of the patch 14"):
        UinoConfig.from_preset("tiny", image_size=size)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(InputError, match="unknown preset 'vitg14'; choose from vits14"):
        UinoConfig.from_preset("vitg14")


def test_unknown_missing_and_mistyped_keys_are_refused():
    values = UinoConfig.from_preset("tiny").to_dict()
    encoder = {**values["encoder"], "rotary": True}
    with pytest.raises(InputError, match=r"unknown encoder\.rotary"):
        UinoConfig.from_dict({**values, "encoder": encoder})
    with pytest.raises(InputError, match="image_size"):
        UinoConfig.from_dict({k: v for k, v in values.items() if k != "image_size"})
    with pytest.raises(InputError, match="not a model configuration"):
        UinoConfig.from_dict({**values, "image_size": "big"})


def test_a_layer_beyond_the_encoder_is_refused():
    values = UinoConfig.from_preset("tiny").to_dict()
    values["encoder"] = {**values["encoder"], "early_layer": 7}
    with pytest.raises(InputError, match="layer 7 is outside"):
        UinoConfig.from_dict(values)
