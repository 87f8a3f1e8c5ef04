"""Export of a checkpoint to a verified bundle: pieces, ONNX, precision, engines."""

from typing import TYPE_CHECKING, Any

if __name__ != "uino_deploy.export":
    raise ImportError(f"import this package as uino_deploy.export, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.export.checkpoints import Origin as Origin
    from uino_deploy.export.checkpoints import export_checkpoint as export_checkpoint
    from uino_deploy.export.engines import build_engines as build_engines
    from uino_deploy.export.exporter import export_bundle as export_bundle
    from uino_deploy.export.verify import verify_bundle as verify_bundle

_MODULES = {
    "Origin": "checkpoints",
    "build_engines": "engines",
    "export_bundle": "exporter",
    "export_checkpoint": "checkpoints",
    "verify_bundle": "verify",
}
__all__ = ["Origin", "build_engines", "export_bundle", "export_checkpoint", "verify_bundle"]


def __getattr__(name: str) -> Any:
    """Import on first use: verifying a stored reference needs neither torch nor onnx."""
    if name not in _MODULES:
        raise AttributeError(f"module 'uino_deploy.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"uino_deploy.export.{_MODULES[name]}"), name)
