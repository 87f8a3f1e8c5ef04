"""The two custom operators: specification, Triton, ONNX, OpenVINO and TensorRT forms."""

from typing import TYPE_CHECKING, Any

if __name__ != "uino_deploy.kernels":
    raise ImportError(f"import this package as uino_deploy.kernels, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.kernels.correlation.op import correlation4d as correlation4d
    from uino_deploy.kernels.selective_scan.op import selective_scan2d as selective_scan2d
    from uino_deploy.kernels.selective_scan.op import selective_scan_fn as selective_scan_fn

__all__ = ["correlation4d", "selective_scan2d", "selective_scan_fn"]


def __getattr__(name: str) -> Any:
    """Import the operators on first use: the compiler and the PTX executor need no torch."""
    if name == "correlation4d":
        from uino_deploy.kernels.correlation.op import correlation4d

        return correlation4d
    if name in ("selective_scan2d", "selective_scan_fn"):
        from uino_deploy.kernels.selective_scan import op

        return getattr(op, name)
    raise AttributeError(f"module 'uino_deploy.kernels' has no attribute {name!r}")
