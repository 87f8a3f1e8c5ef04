"""A piece in int8: static quantisation by ONNX Runtime, without the layers measured as sensitive.

The linear layers are quantised: weights symmetrically per output channel, inputs with one scale
per tensor, calibrated on images. Everything else stays float32: norms, attention,
activations, the residual stream.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from uino_deploy.bundle import Quantisation
from uino_deploy.errors import BuildError, InputError
from uino_deploy.export.onnx_writer import check_model, save_model
from uino_deploy.export.opsets import IR_VERSION

Float32 = npt.NDArray[np.float32]

# A layer stays float32 if int8 changes its own output by more than this (relative L2).
SENSITIVE = 0.1
_ROWS = 256  # rows of a layer's input on which its sensitivity is measured


def quantise(path: Path, images: Sequence[Float32]) -> Quantisation:
    """Replace an exported float32 piece and its weights file with their int8 form.

    Args:
        path: the piece's ONNX file; its weights lie beside it under the piece's name.
        images: calibration inputs [1, 3, S, S], preprocessed.

    Returns:
        The quantised layers and those left out.

    Raises:
        InputError: no calibration image.
        BuildError: int8 hurts every layer too much, or the result is not a valid ONNX model.
    """
    if not images:
        raise InputError("int8 needs calibration images, and none were given")
    errors = sensitivity(path, images[0])
    left_out = sorted(name for name, error in errors.items() if error > SENSITIVE)
    chosen = [name for name in errors if name not in left_out]
    if not chosen:
        raise BuildError(f"{path.name}: int8 hurts every layer too much", "export it in bf16")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / path.name
        _quantise(path, target, chosen, images)
        model = onnx.load(target)
    _cleaned(model, path.stem)
    weights = path.with_suffix(".weights")
    weights.unlink()
    save_model(model, path, weights.name)
    check_model(path)
    return Quantisation(layers=len(chosen), left_out=left_out, images=len(images))


def sensitivity(path: Path, image: Float32) -> dict[str, float]:
    """Return, for each linear layer, the relative L2 error of its own output in int8.

    Args:
        path: a float32 piece.
        image: one input to measure on.
    """
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
    weights = {n.name: numpy_helper.to_array(constants[n.input[1]]) for n in layers}
    values = _values(model, sorted({layer.input[0] for layer in layers}), image)
    errors = {}
    for layer in layers:
        rows = values[layer.input[0]].reshape(-1, values[layer.input[0]].shape[-1])
        errors[layer.name] = _int8_error(rows, weights[layer.name])
    return errors


def _values(model: onnx.ModelProto, names: Sequence[str], image: Float32) -> dict[str, Float32]:
    """Run a model and return the values of inner tensors."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "open.onnx"
        save_model(model, path, "open.weights")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = session.run(list(names), {model.graph.input[0].name: image})
    return dict(zip(names, outputs, strict=True))


def _int8_error(rows: Float32, weight: Float32) -> float:
    scale = np.abs(weight).max(axis=0) / 127
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    step = (high - low) / 255 or 1.0
    some = rows[:: max(1, len(rows) // _ROWS)]
    exact = some @ weight
    rounded = (np.rint(some / step) * step) @ (np.rint(weight / scale) * scale)
    return float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The calibration images, handed to ONNX Runtime one at a time."""

    def __init__(self, name: str, images: Sequence[Float32]) -> None:
        self._feeds: Iterator[dict[str, Float32]] = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _quantise(source: Path, target: Path, layers: list[str], images: Sequence[Float32]) -> None:
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that the exporter has already done
    try:
        quantize_static(
            source,
            target,
            _Images(name, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


def _cleaned(model: onnx.ModelProto, name: str) -> None:
    """Drop the quantiser's notes about itself."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "uino-deploy", ""
    model.graph.name = name
