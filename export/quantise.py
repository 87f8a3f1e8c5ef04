"""A piece in int8 or fp8: its matrix products, without those that measure as sensitive.

Linear layers come first: their weights are rounded symmetrically per output channel and lie in the
file in their 8 bits, and their inputs have one scale, calibrated on images. Attention's products
follow. Everything else keeps its type: norms, softmax, activations, the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from uino_deploy.bundle import Precision, Quantisation
from uino_deploy.errors import BuildError, InputError
from uino_deploy.export.calibration import Calibrated, CalibratedPair, calibrate, calibrate_pair
from uino_deploy.export.formats import FORMATS, Float32, Format
from uino_deploy.export.observation import Operand, observe
from uino_deploy.export.onnx_writer import check_model, save_model
from uino_deploy.export.projections import split_projections
from uino_deploy.export.qdq import (
    Attention,
    Linear,
    attentions,
    insert,
    insert_pairs,
    linear_layers,
)

# A product keeps its type if the 8-bit format changes its own output by more (relative L2).
SENSITIVE = 0.1
_QUERIES = 64  # of each head, on which attention's products are measured


def quantise(path: Path, images: Sequence[Float32], precision: Precision = "int8") -> Quantisation:
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
    split_projections(model)
    linears, pairs = measure(model, images, precision)
    chosen = {layer: how for layer, how in linears.items() if how.error <= SENSITIVE}
    attended = {name: how for name, how in pairs.items() if how.error <= SENSITIVE}
    if not chosen:
        raise BuildError(
            f"{path.name}: {precision} hurts every layer too much", "export it in bf16 or fp16"
        )
    kind, rest = FORMATS[precision], _floating(model)
    insert(model, chosen, kind)
    insert_pairs(model, attended, kind, rest)
    del model.graph.value_info[:]
    weights = path.with_suffix(".weights")
    weights.unlink()
    save_model(model, path, weights.name)
    check_model(path)
    left_out = [layer.name for layer in linears if layer not in chosen]
    left_out += [name for name in pairs if name not in attended]
    return Quantisation(
        layers=len(chosen) + len(attended),
        left_out=sorted(left_out),
        images=len(images),
        smoothed=sum(how.smoothing is not None for how in chosen.values()),
        rest="fp16" if rest == np.float16 else "fp32",
    )


def measure(
    model: onnx.ModelProto, images: Sequence[Float32], precision: str
) -> tuple[dict[Linear, Calibrated], dict[str, CalibratedPair]]:
    """Return the best way to quantise each product, with the error of its own output.

    Args:
        model: a piece with its weights.
        images: calibration inputs [1, 3, S, S].
        precision: int8 or fp8.

    Returns:
        The linear layers, and attention's products by their nodes' names.

    Raises:
        InputError: no image.
    """
    if not images:
        raise InputError(f"{precision} needs calibration images, and none were given")
    kind = FORMATS[precision]
    found, attending = linear_layers(model), attentions(model)
    sources = list(dict.fromkeys(layer.source for layer in found))
    operands = dict.fromkeys(name for a in attending for name in (a.query, a.key, a.value))
    seen = observe(model, sources, list(operands), images)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    linears = {}
    for layer in found:
        weight = numpy_helper.to_array(tensors[layer.weight]).astype(np.float32)
        linears[layer] = calibrate(seen.inputs[layer.source], weight, kind, bool(layer.norm))
    pairs: dict[str, CalibratedPair] = {}
    for each in attending:
        pairs |= _calibrated(each, seen.operands, kind)
    return linears, pairs


def _calibrated(
    attention: Attention, operands: Mapping[str, Operand], kind: Format
) -> dict[str, CalibratedPair]:
    """Calibrate an attention's two products on some of its queries."""
    names = (attention.query, attention.key, attention.value)
    query, key, value = (operands[name] for name in names)
    some = query.values[..., :: max(1, query.values.shape[-2] // _QUERIES), :]
    scores = some @ key.values
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return {
        attention.scores: calibrate_pair(some, key.values, (query.peak, key.peak), kind),
        attention.mixed: calibrate_pair(weights, value.values, (1.0, value.peak), kind),
    }


def _floating(model: onnx.ModelProto) -> np.dtype[np.float16] | np.dtype[np.float32]:
    """Return the type of a piece's floating-point weights."""
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return np.dtype(np.float16) if half else np.dtype(np.float32)
