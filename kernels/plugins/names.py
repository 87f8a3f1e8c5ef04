"""The plugins' names in TensorRT, which the ONNX nodes carry."""

from uino_deploy.kernels.identity import DOMAIN

NAMESPACE = DOMAIN
VERSION = "1"  # the only version that quick-deployable plugins can have
