"""Export of a checkpoint to a verified bundle: pieces, ONNX, precision, engines."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if __name__ != "uino_deploy.export":
    raise ImportError(f"import this package as uino_deploy.export, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.export.checkpoints import Origin as Origin
    from uino_deploy.export.checkpoints import export_checkpoint as export_checkpoint
    from uino_deploy.export.engines import build_engines as build_engines
    from uino_deploy.export.exporter import export_bundle as export_bundle
    from uino_deploy.export.verify import verify_bundle as verify_bundle

__all__ = ["Origin", "build_engines", "export_bundle", "export_checkpoint", "verify_bundle"]

# Verifying a stored reference needs neither torch nor onnx.
__getattr__ = on_first_use(
    __name__,
    "checkpoints.Origin",
    "engines.build_engines",
    "exporter.export_bundle",
    "checkpoints.export_checkpoint",
    "verify.verify_bundle",
)
