"""The versions of ONNX that exported files state."""

DEFAULT_OPSET = 18
OPSETS = range(18, 24)
IR_VERSION = 10
