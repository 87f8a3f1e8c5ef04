"""Massive activations planted in an exported encoder, as DINOv2's few channels have them.

The channels and factors are made up: no published checkpoint's.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import numpy_helper

from uino_deploy.bundle import Bundle, write_manifest
from uino_deploy.export.forecast.blocks import cut_piece
from uino_deploy.export.onnx_writer import save_model

CHANNELS = (3, 17, 40)


def plant(bundle: Bundle, folder: Path, layer: str, factor: float) -> tuple[Bundle, str]:
    """Copy a bundle with three output channels of a layer of its encoder scaled.

    Returns:
        The copy, and the name of the layer's product.
    """
    root = Path(shutil.copytree(bundle.root, folder))
    path = root / "encoder.onnx"
    model = onnx.load(path)
    [node] = [
        node
        for block in cut_piece("encoder", model)
        for node in block.nodes
        if node.product and node.layer == layer
    ]
    [tensor] = [t for t in model.graph.initializer if t.name == node.proto.input[1]]
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, list(CHANNELS)] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    (root / "encoder.weights").unlink()
    save_model(model, path, "encoder.weights")
    write_manifest(root, replace(bundle.manifest, files={}))
    return Bundle.open(root), node.name
