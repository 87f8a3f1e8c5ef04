"""The custom operators: specification, Triton, ONNX, OpenVINO and TensorRT forms."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if __name__ != "uino_deploy.kernels":
    raise ImportError(f"import this package as uino_deploy.kernels, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.kernels.correlation.op import correlation4d as correlation4d
    from uino_deploy.kernels.epilogue.op import scan_epilogue as scan_epilogue
    from uino_deploy.kernels.mlp.op import norm_mlp as norm_mlp
    from uino_deploy.kernels.prologue.op import scan_prologue as scan_prologue
    from uino_deploy.kernels.selective_scan.op import selective_scan2d as selective_scan2d
    from uino_deploy.kernels.selective_scan.op import selective_scan_fn as selective_scan_fn

__all__ = [
    "correlation4d",
    "norm_mlp",
    "scan_epilogue",
    "scan_prologue",
    "selective_scan2d",
    "selective_scan_fn",
]

# The compiler and the PTX executor need no torch.
__getattr__ = on_first_use(
    __name__,
    "correlation.op.correlation4d",
    "mlp.op.norm_mlp",
    "epilogue.op.scan_epilogue",
    "prologue.op.scan_prologue",
    "selective_scan.op.selective_scan2d",
    "selective_scan.op.selective_scan_fn",
)
