"""From a checkpoint to a verified bundle: pieces, ONNX, precision, engines."""

from typing import TYPE_CHECKING, Any

if __name__ != "uino_deploy.export":
    raise ImportError(f"import this package as uino_deploy.export, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.export.engines import build_engines as build_engines
    from uino_deploy.export.exporter import export_bundle as export_bundle
    from uino_deploy.export.verify import verify_bundle as verify_bundle

__all__ = ["build_engines", "export_bundle", "verify_bundle"]


def __getattr__(name: str) -> Any:
    """Import on first use: verifying a stored reference needs neither torch nor onnx."""
    if name == "build_engines":
        from uino_deploy.export.engines import build_engines

        return build_engines
    if name == "export_bundle":
        from uino_deploy.export.exporter import export_bundle

        return export_bundle
    if name == "verify_bundle":
        from uino_deploy.export.verify import verify_bundle

        return verify_bundle
    raise AttributeError(f"module 'uino_deploy.export' has no attribute {name!r}")
