"""Deployment of UINO-FSS few-shot segmentation: export, verify, build, run and measure."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uino_deploy.config import UinoConfig as UinoConfig
    from uino_deploy.model.segmenter import UinoFSS as UinoFSS

__version__ = "0.1.0"
__all__ = ["UinoConfig", "UinoFSS", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that importing the package needs no torch."""
    if name == "UinoConfig":
        from uino_deploy.config import UinoConfig

        return UinoConfig
    if name == "UinoFSS":
        from uino_deploy.model.segmenter import UinoFSS

        return UinoFSS
    raise AttributeError(f"module 'uino_deploy' has no attribute {name!r}")
