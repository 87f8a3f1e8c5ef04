"""Deployment of UINO-FSS few-shot segmentation: export, verify, build, run and measure."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if TYPE_CHECKING:
    from uino_deploy.config import UinoConfig as UinoConfig
    from uino_deploy.model.segmenter import UinoFSS as UinoFSS

__version__ = "0.1.0"
__all__ = ["UinoConfig", "UinoFSS", "__version__"]

# Importing the package needs no torch.
__getattr__ = on_first_use(__name__, "config.UinoConfig", "model.segmenter.UinoFSS")
