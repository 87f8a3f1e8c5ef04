"""The names under which TensorRT knows the plugins; ONNX nodes carry them."""

NAMESPACE = "uino"
VERSION = "1"  # the only one that quick-deployable plugins can have
