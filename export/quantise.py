"""A piece in int8 or fp8: its linear layers, without those that measure as sensitive.

Weights are rounded symmetrically per output channel and lie in the file in their 8 bits; inputs
have one scale, calibrated on images. Everything else keeps its type: norms, attention, activations,
the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from uino_deploy.bundle import Quantisation
from uino_deploy.errors import BuildError, InputError
from uino_deploy.export.calibration import Calibrated, Inputs, calibrate
from uino_deploy.export.formats import FORMATS, Float32
from uino_deploy.export.onnx_writer import check_model, save_model
from uino_deploy.export.projections import part_projections
from uino_deploy.export.qdq import Linears, insert, linear_layers
from uino_deploy.workspace import work_folder

# A layer keeps its type if the 8-bit format changes its own output by more (relative L2).
SENSITIVE = 0.1
_ROWS = 256  # rows of a layer's input, over all images, on which its ways are measured


def quantise(
    path: Path, images: Sequence[Float32], precision: Literal["int8", "fp8"] = "int8"
) -> Quantisation:
    """Replace an exported piece and its weights file with their 8-bit form.

    Args:
        path: the piece's ONNX file, in float32 or float16; its weights lie beside it under the
            piece's name.
        images: calibration inputs [1, 3, S, S], preprocessed.
        precision: int8, or fp8 (e4m3), which needs opset 19, as float16 does.

    Returns:
        What was quantised and what was left out.

    Raises:
        InputError: no calibration image.
        BuildError: the format hurts every layer too much, or the result is not a valid ONNX model.
    """
    model = onnx.load(path)
    part_projections(model)
    ways = measure(model, images, precision)
    chosen = {layers: how for layers, how in ways.items() if how.error <= SENSITIVE}
    left_out = [name for layers in ways if layers not in chosen for name in layers.names]
    if not chosen:
        raise BuildError(
            f"{path.name}: {precision} hurts every layer too much", "export it in bf16 or fp16"
        )
    insert(model, chosen, FORMATS[precision])
    del model.graph.value_info[:]
    weights = path.with_suffix(".weights")
    weights.unlink()
    save_model(model, path, weights.name)
    check_model(path)
    return Quantisation(
        layers=sum(len(layers.names) for layers in chosen),
        left_out=sorted(left_out),
        images=len(images),
        smoothed=sum(
            len(layers.names) for layers, how in chosen.items() if how.smoothing is not None
        ),
        rest="fp16" if _is_half(model) else "fp32",
    )


def measure(
    model: onnx.ModelProto, images: Sequence[Float32], precision: str
) -> dict[Linears, Calibrated]:
    """Return the best way to quantise the layers that read one tensor, and their outputs' error.

    Args:
        model: a piece with its weights.
        images: calibration inputs [1, 3, S, S].
        precision: int8 or fp8.

    Raises:
        InputError: no image.
    """
    if not images:
        raise InputError(f"{precision} needs calibration images, and none were given")
    found = linear_layers(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen = _observed(model, [layers.source for layers in found], images)
    ways = {}
    for layers in found:
        weights = [numpy_helper.to_array(tensors[name]) for name in layers.weights]
        joint = np.concatenate(weights, axis=1).astype(np.float32)
        ways[layers] = calibrate(
            seen[layers.source], joint, FORMATS[precision], foldable=bool(layers.norm)
        )
    return ways


def _observed(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[Float32]
) -> dict[str, Inputs]:
    """Run a model on images and keep some rows and the peaks of inner tensors."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    rows: dict[str, list[Float32]] = {name: [] for name in names}
    peaks: dict[str, list[Float32]] = {name: [] for name in names}
    with work_folder(None, "uino-quantise") as folder:
        path = folder / "open.onnx"
        save_model(opened, path, "open.weights")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for image in images:
            outputs: list[npt.NDArray[np.floating]] = session.run(
                list(names), {model.graph.input[0].name: image}
            )
            for name, values in zip(names, outputs, strict=True):
                every = values.reshape(-1, values.shape[-1])
                step = max(1, len(every) * len(images) // _ROWS)
                rows[name].append(every[::step].astype(np.float32))
                peaks[name].append(np.abs(every).max(axis=0).astype(np.float32))
    return {name: Inputs(np.concatenate(rows[name]), np.max(peaks[name], axis=0)) for name in names}


def _is_half(model: onnx.ModelProto) -> bool:
    return any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
