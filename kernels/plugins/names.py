"""The names under which TensorRT knows the plugins; ONNX nodes carry them."""

from uino_deploy.kernels.identity import DOMAIN

NAMESPACE = DOMAIN
VERSION = "1"  # the only one that quick-deployable plugins can have
