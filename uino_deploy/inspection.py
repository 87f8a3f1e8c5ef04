"""Descriptions of bundles, supports, checkpoints, ONNX files and presets as plain values.

Every description is a dictionary with a `kind` that `json.dumps` accepts. If the
format allows it, only headers are read: a checkpoint of gigabytes is described in milliseconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.plans import plans_of
from uino_deploy.bundle.signature import note_unchecked
from uino_deploy.bundle.support import FORMAT, Support
from uino_deploy.config import PRESETS, VARIANTS, UinoConfig
from uino_deploy.dependencies import require
from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import CheckpointError, InputError

Description = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def inspect(target: str) -> Description:
    """Describe a file, a bundle's folder, or a preset by name.

    Args:
        target: a path, or one of `PRESETS` if no file has that name.

    Raises:
        InputError: the target does not exist, or its kind is unknown.
        BundleError: a bundle is damaged.
        CheckpointError: a checkpoint is unreadable.
        DependencyError: the package that reads this kind is not installed.
    """
    path = Path(target)
    if not path.exists():
        if target in PRESETS:
            return describe_preset(target)
        raise InputError(
            f"{target} is neither a file nor a preset", f"presets are {', '.join(PRESETS)}"
        )
    if path.is_dir():
        return describe_bundle(path)
    if not path.is_file():  # the readers would wait for a pipe
        raise InputError(f"{path} is a device, pipe or socket", "give a file")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        note_unchecked(path, "an ONNX file")
        return describe_onnx(path)
    if suffix == ".safetensors":
        return describe_safetensors(path)
    if suffix in {".pth", ".pt"}:
        note_unchecked(path, "a checkpoint")
        return describe_pth(path)
    raise InputError(
        f"{path}: unknown kind of file {suffix or 'without a suffix'!r}",
        "give a .uino folder, .safetensors, .pth, .onnx or a preset's name",
    )


def describe_bundle(path: Path) -> Description:
    """Check every file of a bundle, then describe it."""
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "path": str(path),
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "manifest": msgspec.to_builtins(manifest),
        "plans": [msgspec.to_builtins(info) for info in plans_of(bundle)],
    }


def describe_preset(name: str) -> Description:
    """Count the parameters of every part of a preset's model, for each variant.

    The models are built without memory for their weights, so the largest takes a second.
    """
    require("export", "torch")
    import torch

    from uino_deploy.model.segmenter import UinoFSS, parameter_counts

    config = UinoConfig.from_preset(name)
    counts: dict[str, dict[str, int]] = {}
    for variant in VARIANTS:
        with torch.device("meta"):
            model = UinoFSS(UinoConfig.from_preset(name, variant))
        counts[variant] = _with_generator_parts(
            parameter_counts(model), parameter_counts(model.prompt_generator)
        )
    return {
        "kind": "preset",
        "preset": name,
        "image_size": config.image_size,
        "encoder": msgspec.to_builtins(config.encoder),
        "parameters": counts,
    }


def describe_onnx(path: Path) -> Description:
    """Describe an ONNX file: its edges, opset, operators and initialisers."""
    require("export", "onnx")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file: {error}") from error
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for node in model.graph.node
    )
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        count = 1
        for dimension in tensor.dims:
            count *= dimension
        weights[_onnx_type(tensor.data_type)] += count
    return {
        "kind": "onnx",
        "path": str(path),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_onnx_edge(value) for value in model.graph.input],
        "outputs": [_onnx_edge(value) for value in model.graph.output],
        "operators": dict(operators.most_common()),
        "functions": [f"{each.domain}::{each.name}" for each in model.functions],
        "weights": dict(weights),
    }


def describe_safetensors(path: Path) -> Description:
    """Describe a support file or a checkpoint by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}", "download or write it again"
        ) from error
    if metadata.get("format") == FORMAT:
        return describe_support(path)
    note_unchecked(path, "a checkpoint")
    require("export", "torch")
    import torch

    complex_or_real = {True: torch.complex64, False: torch.float32}
    values = {
        name: torch.empty(shape, dtype=complex_or_real[types[name][0] == "C"], device="meta")
        for name, shape in shapes.items()
    }
    return {
        **_describe_tensors(path, values, metadata),
        "dtypes": dict(Counter(types.values())),
        "metadata": _decoded(path, metadata),
    }


def describe_support(path: Path) -> Description:
    """Check an enrolled class's contents, then describe it."""
    support = Support.load(path)
    return {
        "kind": "support",
        "path": str(path),
        "bytes": path.stat().st_size,
        "name": support.name,
        "shots": support.shots,
        "precision": support.precision,
        "model": support.model,
        "fingerprint": support.fingerprint,
        "preprocess": support.preprocess,
        "calibrated": support.calibration is not None,
        "tensors": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in support.tensors.items()
        ],
    }


def describe_pth(path: Path) -> Description:
    """Describe a PyTorch checkpoint; only tensors are unpickled (`weights_only`)."""
    require("export", "torch")
    import torch

    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        raise CheckpointError(
            f"{path} cannot be read as tensors only",
            "give a state dictionary; files that pickle anything but tensors are never loaded",
        ) from error
    described = _describe_tensors(path, loaded if isinstance(loaded, dict) else {}, {})
    if not described["tensors"]:
        raise CheckpointError(
            f"{path} does not contain a dictionary of tensors", "give a state dictionary"
        )
    return described


def describe_layout(shapes: Shapes) -> str:
    """Name the layout of a checkpoint, and the presets whose encoder has its sizes.

    Args:
        shapes: tensor name -> shape.

    Returns:
        Such as "DINOv2 (official), fits vitb14-reg"; "unknown layout" if it is not recognised.
    """
    from uino_deploy.model.layouts import fitting_presets, recognise

    layout = recognise(shapes)
    if layout is None:
        return "unknown layout"
    if layout.holds != "dinov2":
        return layout.title
    return f"{layout.title}, fits {' or '.join(fitting_presets(layout, shapes)) or 'no preset'}"


def _with_generator_parts(counts: dict[str, int], generator: dict[str, int]) -> dict[str, int]:
    """Insert the prompt generator's own parts after it."""
    ordered = {}
    for name, count in counts.items():
        ordered[name] = count
        if name == "prompt_generator":
            for part, part_count in generator.items():
                if part not in {"segmenter", "total"}:
                    ordered[f"{name}.{part}"] = part_count
    return ordered


def _decoded(path: Path, metadata: dict[str, str]) -> Description:
    """Decode the JSON values in our own checkpoints' metadata.

    Raises:
        CheckpointError: one of ours has a value that is not JSON.
    """
    from uino_deploy.model.checkpoint import FORMAT as OWN  # needs torch

    decoded: Description = dict(metadata)
    for key, value in metadata.items():
        try:
            decoded[key] = decode_json(value, object)
        except DocumentError as error:
            if metadata.get("format") == OWN and key in {"config", "provenance"}:
                raise CheckpointError(f"{path} has damaged metadata: {key}: {error}") from error
    return decoded


def _describe_tensors(
    path: Path, loaded: Mapping[str, Any], metadata: Mapping[str, str]
) -> Description:
    """Describe tensors, with what is around them taken off; their numbers are not read.

    Args:
        path: the file.
        loaded: what it holds, by name.
        metadata: a safetensors file's metadata.
    """
    import torch

    from uino_deploy.model.checkpoint import FORMAT as OWN
    from uino_deploy.model.checkpoint import read_checkpoint_metadata, why_refused
    from uino_deploy.model.wrappings import unwrap

    values, wrapping = unwrap(loaded)
    tensors = {str(n): value for n, value in values.items() if isinstance(value, torch.Tensor)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    try:
        config = read_checkpoint_metadata(path).config if metadata.get("format") == OWN else None
        refused = why_refused(str(path), values, shapes, config)
    except CheckpointError as error:
        refused = error.what
    parts: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts[name.split(".")[0]] += math.prod(shape)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "bytes": path.stat().st_size,
        "layout": describe_layout(shapes) + (f" ({wrapping})" if wrapping else ""),
        "refused": refused,
        "tensors": len(shapes),
        "parameters": dict(parts),
        "dtypes": dict(Counter(str(v.dtype).removeprefix("torch.") for v in tensors.values())),
        "metadata": {},
    }


def _onnx_edge(value: Any) -> Description:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "shape": shape, "dtype": _onnx_type(tensor.elem_type)}


def _onnx_type(number: int) -> str:
    """Return an element type's name; a later version of ONNX may have others."""
    from onnx import TensorProto

    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(number)).lower() if number in known else f"type {number}"
