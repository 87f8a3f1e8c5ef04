"""Checkpoints: readers for DINOv2's, Segment Anything's and our own, and a writer for our own.

Our own is one safetensors file: the model's tensors, and in the metadata `format`,
`format_version`, `config` and `provenance` (the last two as JSON).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from uino_deploy.config import DecoderConfig, EncoderConfig, UinoConfig
from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import CheckpointError, InputError
from uino_deploy.files import atomic_file
from uino_deploy.inputs import read_regular
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.layouts import SAM_ENCODER, UINO, Layout, Shapes, fitting_presets, recognise
from uino_deploy.model.mask_decoder import MaskDecoder
from uino_deploy.model.sam_encoder import PATCH, SamEncoderConfig, SamImageEncoder
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.model.wrappings import unwrap

FORMAT = "uino-checkpoint"
FORMAT_VERSION = "1"
_MOST_INDEX = 64 << 20  # bytes of the index of a file in parts

Tensors = dict[str, Tensor]
Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class CheckpointMetadata:
    """The metadata of one of our own checkpoints.

    Attributes:
        config: the configuration of its model.
        provenance: how it was made, as given to `save_checkpoint`.
    """

    config: UinoConfig
    provenance: dict[str, Any]


def load_dinov2(path: str | Path, config: EncoderConfig | None = None) -> DinoVisionTransformer:
    """Load a frozen encoder from an official `.pth` or a Hugging Face `model.safetensors`.

    Args:
        path: weights of ViT-S, B or L with patch 14, with or without registers, in any
            floating type; or the `.index.json` of a file in parts. What a training puts around
            them (`module.`, a teacher, block chunks) is taken off.
        config: the encoder to fill; the preset with the file's sizes if None.

    Returns:
        The encoder in float32, in evaluation mode, without gradients.

    Raises:
        CheckpointError: the file is unreadable, or of another architecture than `config`.
    """
    tensors, name = _read(path)
    layout = _expect("dinov2", name, tensors)
    presets = fitting_presets(layout, _shapes(tensors))
    if config is None:
        config = _preset_of(name, layout, _shapes(tensors))
    hint = f"its sizes are those of preset {' or '.join(presets)}" if presets else ""
    encoder = _filled(DinoVisionTransformer, config, tensors, layout, name, hint)
    return encoder.eval().requires_grad_(False)


def _preset_of(path: str, layout: Layout, shapes: Shapes) -> EncoderConfig:
    presets = fitting_presets(layout, shapes)
    if not presets:
        raise CheckpointError(
            f"{path} matches no preset's encoder in width, depth and registers",
            "take DINOv2's ViT-S, B or L, or pass an EncoderConfig",
        )
    return next(iter(presets.values()))


def load_sam_decoder(path: str | Path, config: DecoderConfig | None = None) -> MaskDecoder:
    """Load the mask decoder and the position encoding from Segment Anything's `.pth` (B, L or H).

    Args:
        path: the whole published checkpoint; its image encoder is not read from disk.
        config: the decoder to fill; SAM's published sizes if None.

    Returns:
        The decoder in float32, in evaluation mode.

    Raises:
        CheckpointError: the file is unreadable, or of another architecture than `config`.
    """
    tensors, name = _read(path)
    layout = _expect("sam", name, tensors)
    return _filled(MaskDecoder, config or DecoderConfig(), tensors, layout, name).eval()


def load_sam_image_encoder(path: str | Path) -> SamImageEncoder:
    """Load the image encoder from Segment Anything's `.pth` (B, L or H), the adapter's teacher.

    The tensors' shapes give its sizes.

    Returns:
        The encoder in float32, in evaluation mode, without gradients.

    Raises:
        CheckpointError: the file is unreadable, or contains no SAM image encoder.
    """
    tensors, name = _read(path)
    _expect("sam", name, tensors)
    config = _sam_encoder_config(name, _shapes(tensors))
    encoder = _filled(SamImageEncoder, config, tensors, SAM_ENCODER, name)
    return encoder.eval().requires_grad_(False)


def _sam_encoder_config(path: str, shapes: Shapes) -> SamEncoderConfig:
    sides: list[int] = []
    channels = 1
    while (name := f"image_encoder.blocks.{len(sides)}.attn.rel_pos_h") in shapes:
        sides.append((shapes[name][0] + 1) // 2)
        channels = shapes[name][-1]
    position = shapes.get("image_encoder.pos_embed", ())
    neck = shapes.get("image_encoder.neck.0.weight", ())
    if not sides or len(position) != 4 or not neck:
        raise CheckpointError(
            f"{path} contains no Segment Anything image encoder",
            "take the whole published checkpoint: sam_vit_b, l or h",
        )
    grid, width = position[1], position[3]
    return SamEncoderConfig(
        width=width,
        depth=len(sides),
        heads=width // channels,
        global_blocks=tuple(block for block, side in enumerate(sides) if side == grid),
        window=min(sides),
        image_size=grid * PATCH,
        embedding=neck[0],
    )


def save_checkpoint(
    model: UinoFSS,
    path: str | Path,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    force: bool = False,
) -> None:
    """Write a model as one file, atomically; the same model gives the same bytes.

    Args:
        model: the model, on any device.
        path: the `.safetensors` file to write.
        provenance: how the model was made, as values that JSON can represent.
        dtype: the type of the floating-point tensors in the file.
        force: replace an existing file.

    Raises:
        OutputExists: the file exists and `force` is not given.
        CheckpointError: a tensor has values that are not finite in `dtype`.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        cast = tensor.to("cpu", dtype if tensor.is_floating_point() else None)
        if not torch.isfinite(cast).all():
            raise CheckpointError(f"{name} is not finite in {dtype}", "the model is not saved")
        tensors[name] = cast.contiguous()
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "provenance": json.dumps(provenance, sort_keys=True),
    }
    with atomic_file(path, force) as temporary:
        save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def load_checkpoint(path: str | Path) -> UinoFSS:
    """Load what `save_checkpoint` wrote.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        CheckpointError: the file is unreadable, damaged, or not one of ours.
    """
    config = read_checkpoint_metadata(path).config
    # Before the tensors are read: the header may tell of any sizes.
    _check_fits(UinoFSS, config, UINO, _header_shapes(path), str(path))
    return _filled(UinoFSS, config, _read(path).tensors, UINO, str(path)).eval()


def read_checkpoint_metadata(path: str | Path) -> CheckpointMetadata:
    """Read the metadata of one of our own checkpoints, without its tensors.

    Raises:
        CheckpointError: the file is unreadable, not one of ours, or has another format version.
    """
    metadata = _safetensors_metadata(path) if _is_safetensors(path) else {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a uino-deploy checkpoint", "`uino-deploy inspect` tells what it is"
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}",
            "use the uino-deploy that wrote it",
        )
    try:
        config = UinoConfig.from_dict(decode_json(metadata["config"], dict[str, Any]))
        return CheckpointMetadata(config, decode_json(metadata["provenance"], dict[str, Any]))
    except (KeyError, DocumentError, InputError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error


def _header_shapes(path: str | Path) -> Shapes:
    try:
        with safe_open(path, "numpy") as file:
            return {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118 - no dict
            }
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _is_safetensors(path: str | Path) -> bool:
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is not a file")
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"  # a JSON header follows its length in 8 bytes


def _safetensors_metadata(path: str | Path) -> dict[str, str]:
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: SafetensorError) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or truncated: {error}", "download or write it again")


class _File(NamedTuple):
    """A checkpoint's tensors, and its name for people, which says what was around them."""

    tensors: Tensors
    name: str


def _read(path: str | Path) -> _File:
    """Read any checkpoint's tensors, mapped from disk if the file allows it."""
    if str(path).endswith(".index.json") and Path(path).is_file():
        loaded: Mapping[str, Any] = _read_shards(Path(path))
    elif _is_safetensors(path):
        loaded = _load_safetensors(path)
    else:
        loaded = _read_pickle(path)
    tensors, wrapping = unwrap(loaded)
    _check_plain(str(path), tensors)
    empty = next((name for name, value in tensors.items() if value.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{path}: tensor {empty} is without values", "save it again")
    return _File(tensors, f"{path} ({wrapping})" if wrapping else str(path))


def _check_plain(path: str, values: Mapping[str, Any]) -> None:
    """Refuse what is no tensor, and tensors that no model is filled with."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {name!r}, not a tensor",
                "save only the model's state_dict()",
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{path}: tensor {name} is sparse, quantised or complex",
                "save plain tensors of real numbers",
            )


def why_refused(
    path: str, values: Mapping[str, Any], shapes: Shapes, config: UinoConfig | None = None
) -> str:
    """Return why `export` takes no weights from a file; empty if nothing shows before it is read.

    Args:
        path: the file, for the message.
        values: what it holds by name, once unwrapped; empty where only `shapes` are known.
        shapes: tensor name -> shape.
        config: the model that our own checkpoints describe.
    """
    try:
        _check_plain(path, values)
        layout = _recognise(path, shapes)
        if layout.holds == "uino":
            if config is None:
                return "no configuration lies beside its tensors: uino-deploy did not write it"
            _check_fits(UinoFSS, config, layout, shapes, path)
        elif layout.holds == "sam":
            _check_fits(MaskDecoder, DecoderConfig(), layout, shapes, path)
        else:
            _check_fits(
                DinoVisionTransformer, _preset_of(path, layout, shapes), layout, shapes, path
            )
    except CheckpointError as error:
        return error.what
    return ""


def _load_safetensors(path: str | Path) -> Tensors:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _read_shards(index: Path) -> Tensors:
    """Read the tensors of a Hugging Face index, which names the file of each."""
    try:
        shards = decode_json(read_regular(index, "index", _MOST_INDEX), _Index).weight_map
    except DocumentError as error:
        raise CheckpointError(f"{index} is no index of safetensors files: {error}") from error
    tensors: Tensors = {}
    for shard in sorted(set(shards.values())):
        if not shard or Path(shard).name != shard:
            raise CheckpointError(f"{index} names {shard!r}, which is no file beside it")
        path = index.with_name(shard)
        if not path.is_file():
            raise CheckpointError(f"{index} names {shard}, which does not exist", "download it too")
        tensors |= _load_safetensors(path)
    missing = shards.keys() - tensors.keys()
    if missing:
        raise CheckpointError(f"{index} names {min(missing)}, which its files do not hold")
    return tensors


class _Index(msgspec.Struct):
    """The part of `model.safetensors.index.json` that is needed."""

    weight_map: dict[str, str]


def _read_pickle(path: str | Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"  # torch.save's format since 1.6, which can be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's pickle protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise _refused(path, error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not named tensors")
    return loaded


def _refused(path: str | Path, error: Exception) -> CheckpointError:
    match = re.search(r"GLOBAL (\S+)", str(error))
    if match:
        return CheckpointError(
            f"{path} would run code when loaded (it names {match[1]}) and was not loaded",
            "save only the model's state_dict(), or use safetensors",
        )
    return CheckpointError(
        f"{path} is truncated, or neither safetensors nor a PyTorch file of tensors only",
        "download it again; a file that pickles anything but tensors is never loaded",
    )


def _recognise(path: str, shapes: Shapes) -> Layout:
    layout = recognise(shapes)
    if layout is None:
        first = ", ".join(map(str, list(shapes)[:3])) or "none at all"
        raise CheckpointError(
            f"{path} has an unknown layout; its tensors are {first}",
            "take DINOv2's, Segment Anything's or uino-deploy's own checkpoints",
        )
    return layout


def _expect(part: str, path: str, tensors: Tensors) -> Layout:
    layout = _recognise(path, _shapes(tensors))
    if layout.holds != part:
        wanted = {"dinov2": "DINOv2", "sam": "Segment Anything"}[part]
        raise CheckpointError(f"{path} is a {layout.title} checkpoint, not {wanted}'s")
    return layout


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class _WithoutInit(TorchFunctionMode):
    """Skip torch.nn.init: drawing a large model's random weights takes longer than loading them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" and "tensor" in named:
            return named["tensor"]
        return func(*args, **named)


def _unfilled(kind: Callable[[Config], Module], config: Config) -> Module:
    """Build a module whose tensors will all be replaced, without touching the random state."""
    with torch.random.fork_rng(devices=[]), _WithoutInit():
        return kind(config)


def _check_fits(
    kind: Callable[[Config], nn.Module],
    config: Config,
    layout: Layout,
    held: Shapes,
    path: str,
    hint: str = "",
) -> None:
    """Compare a file's names and shapes with a module's, without memory for the module."""
    try:
        with torch.device("meta"):
            planned = kind(config)
    # Sizes that do not go together fail in many ways inside torch.
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} describes a model that cannot be: {reason}") from error
    _compare(layout.asked(_shapes(planned.state_dict())), layout.held(held), path, hint)


@torch.no_grad()
def _filled(
    kind: Callable[[Config], Module],
    config: Config,
    tensors: Tensors,
    layout: Layout,
    path: str,
    hint: str = "",
) -> Module:
    """Build a module of float32 copies of a file's tensors, once names and shapes agree."""
    _check_fits(kind, config, layout, _shapes(tensors), path, hint)
    module = _unfilled(kind, config)
    for name, target in module.state_dict().items():
        parts = [_finite(source, tensors[source], path) for source in layout.sources(name)]
        target.copy_(parts[0] if len(parts) == 1 else torch.cat(parts))
    return module


def _finite(name: str, tensor: Tensor, path: str) -> Tensor:
    """Refuse a tensor that no model can compute with: later it would look like a fault of ours."""
    if not torch.isfinite(tensor.float()).all():
        raise CheckpointError(
            f"{path}: tensor {name} holds numbers that are not finite",
            "the training diverged or the file is damaged: take another checkpoint",
        )
    return tensor


def _compare(expected: Shapes, got: Shapes, path: str, hint: str) -> None:
    """Raise a CheckpointError that names the first of each kind of difference."""
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    misshaped = [
        f"{name} ({_dims(got[name])}, expected {_dims(shape)})"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
    mismatches = [
        f"{len(names)} {kind}, first {names[0]}" if len(names) > 1 else f"{kind} {names[0]}"
        for kind, names in kinds.items()
        if names
    ]
    if mismatches:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(mismatches)}", hint)


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _sort_metadata(path: Path) -> None:
    """Sort the header's metadata in place: safetensors writes it in arbitrary order."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
