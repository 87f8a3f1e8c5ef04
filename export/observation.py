"""What a piece's matrix products read on calibration images, as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from uino_deploy.export.calibration import Inputs
from uino_deploy.export.formats import Float32
from uino_deploy.export.onnx_writer import save_model
from uino_deploy.workspace import work_folder

_ROWS = 256  # that are kept of a layer's inputs, over all images
_WHOLE = 2  # images on which attention's operands are kept


class Operand(NamedTuple):
    """An operand of attention: its values on the first images, and its largest size on all."""

    values: Float32
    peak: float


class Observed(NamedTuple):
    """What products read, by the tensors' names."""

    inputs: dict[str, Inputs]
    operands: dict[str, Operand]


def observe(
    model: onnx.ModelProto,
    inputs: Sequence[str],
    operands: Sequence[str],
    images: Sequence[Float32],
) -> Observed:
    """Run a model on images.

    Args:
        model: a piece with its weights.
        inputs: tensors that linear layers read.
        operands: tensors that attention's products read.
        images: [1, 3, S, S], at least one.
    """
    rows: dict[str, list[Float32]] = {name: [] for name in inputs}
    whole: dict[str, list[Float32]] = {name: [] for name in operands}
    peaks: dict[str, list[Float32]] = {name: [] for name in (*inputs, *operands)}
    with work_folder(None, "uino-quantise") as folder:
        path = folder / "open.onnx"
        save_model(_opened(model, list(peaks)), path, "open.weights")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for number, image in enumerate(images):
            outputs = session.run(list(peaks), {model.graph.input[0].name: image})
            for name, values in zip(peaks, outputs, strict=True):
                every = _rows(values)
                peaks[name].append(np.abs(every).max(axis=0))
                if name in rows:
                    step = max(1, len(every) * len(images) // _ROWS)
                    rows[name].append(every[::step].copy())
                elif number < _WHOLE:
                    whole[name].append(values.astype(np.float32))
    most = {name: np.max(found, axis=0) for name, found in peaks.items()}
    return Observed(
        {name: Inputs(np.concatenate(rows[name]), most[name]) for name in inputs},
        {name: Operand(np.concatenate(whole[name]), float(most[name].max())) for name in operands},
    )


def _rows(values: npt.NDArray[Any]) -> Float32:
    return values.reshape(-1, values.shape[-1]).astype(np.float32)


def _opened(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model that gives inner tensors."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return opened
