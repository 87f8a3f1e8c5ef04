"""From a checkpoint to a verified bundle: pieces, ONNX, precision, engines."""

if __name__ != "uino_deploy.export":
    raise ImportError(f"import this package as uino_deploy.export, not as {__name__}")
