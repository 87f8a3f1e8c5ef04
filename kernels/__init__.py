"""The two operators no runtime has: references, Triton kernels, ONNX bodies and TensorRT plugins."""

if __name__ != "uino_deploy.kernels":
    raise ImportError(f"import this package as uino_deploy.kernels, not as {__name__}")
