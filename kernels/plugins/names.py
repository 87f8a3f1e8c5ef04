"""The plugins' names in TensorRT, which the ONNX nodes carry."""

from collections.abc import Mapping

from uino_deploy.kernels.identity import DOMAIN

NAMESPACE = DOMAIN
VERSION = "1"  # the only version that quick-deployable plugins can have

# TensorRT 10.15+ replaces a function by a plugin only if the node names a namespace;
# `aot` selects the ahead-of-time plugin (onnx-tensorrt, importerUtils.cpp). Others ignore both.
PLUGIN: Mapping[str, int | str] = {
    "aot": 1,
    "plugin_namespace": NAMESPACE,
    "plugin_version": VERSION,
}
