"""The kernels' variants that the presets need."""

from collections.abc import Sequence

from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.kernels.compiler.variants import Variant, model_variants


def preset_variants(capability: int, presets: Sequence[str] = tuple(PRESETS)) -> list[Variant]:
    """Return the variants that presets need on an architecture."""
    return model_variants([UinoConfig.from_preset(preset) for preset in presets], capability)
