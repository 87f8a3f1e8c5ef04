"""An enrolled class: the features of its support images, as arrays and as one checked file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from uino_deploy.bundle.manifest import Manifest, Precision
from uino_deploy.bundle.presence import Calibration
from uino_deploy.bundle.signature import Required, check_signature
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file, safetensors_bytes
from uino_deploy.inputs import read_regular
from uino_deploy.pipeline import CLASS, with_class_axis

Array = npt.NDArray[Any]

FORMAT = "uino-support"
FORMAT_VERSION = "1.1"  # 1.1 holds the calibration of the presence

MAX_BYTES = 2 << 30
"""Bytes of the largest support file that is read."""

_RANKS = {"deep": 4, "weight": 2, "prototypes": 2, "sparse": 2}
# A file system counts bytes: a name may have 255 of them.
_MAX_NAME, _MAX_BYTES = 100, 255
# Windows takes these for devices, whatever follows a dot.
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in range(10)
}


class _Header(msgspec.Struct):
    """The beginning of a safetensors file, without its tensors."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


class _Metadata(msgspec.Struct, kw_only=True):
    """The file's metadata; safetensors holds strings only."""

    format: str
    format_version: str
    name: str
    shots: int
    precision: Precision
    model: str
    fingerprint: str
    preprocess: str
    digest: str
    presence_middle: float | None = None
    presence_scale: float | None = None

    @property
    def calibration(self) -> Calibration | None:
        if self.presence_middle is None or self.presence_scale is None:
            return None
        return Calibration(self.presence_middle, self.presence_scale)


@dataclass(frozen=True, eq=False)
class Support:
    """One class as `Predictor.enroll` returns it; the arrays are float32 or float16.

    Attributes:
        name: the class's name; it also names output folders.
        shots: the number of images it was enrolled from, K.
        precision: the internal precision of the encoder that made it.
        model: that model's preset, variant and image size, for display.
        fingerprint: that model's identity, see `Manifest.fingerprint`.
        preprocess: the identity of its preprocessing, see `Preprocess.fingerprint`.
        prototypes: [2, D], foreground and background.
        deep: [K, L, N, D]; None for a variant without hypercorrelation.
        weight: [K, N]; None for a variant without hypercorrelation.
        sparse: [2, E]; None for a variant without a semantic prompt.
        calibration: tells present from absent; None if the class was enrolled without it, as
            earlier versions did.
    """

    name: str
    shots: int
    precision: Precision
    model: str
    fingerprint: str
    preprocess: str
    prototypes: Array
    deep: Array | None = None
    weight: Array | None = None
    sparse: Array | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Refuse a name that cannot name a folder.

        Raises:
            InputError: the name.
        """
        check_class_name(self.name)

    @property
    def tensors(self) -> dict[str, Array]:
        """The arrays that this model's variant has, by name."""
        arrays = {name: getattr(self, name) for name in _RANKS}
        return {name: array for name, array in arrays.items() if array is not None}

    @property
    def features(self) -> dict[str, Array]:
        """This class's inputs to a query, with the names and shapes of `pipeline.QUERY`."""
        return with_class_axis(CLASS.named(self.tensors))

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write the class as one `.safetensors` file, whole or not at all.

        Args:
            path: the file.
            force: replace the file if it exists.

        Raises:
            OutputExists: the file exists and `force` is not given.
        """
        metadata = _Metadata(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            name=self.name,
            shots=self.shots,
            precision=self.precision,
            model=self.model,
            fingerprint=self.fingerprint,
            preprocess=self.preprocess,
            digest=_digest(self.tensors),
            presence_middle=None if self.calibration is None else self.calibration.middle,
            presence_scale=None if self.calibration is None else self.calibration.scale,
        )
        values = msgspec.structs.asdict(metadata).items()
        strings = {key: str(value) for key, value in values if value is not None}
        with atomic_file(path, force) as temporary:
            temporary.write_bytes(safetensors_bytes(self.tensors, strings))

    @classmethod
    def load(cls, path: str | Path, require_signature: Required = None) -> Support:
        """Read what `save` wrote.

        Args:
            path: the file.
            require_signature: the public key's file whose signature it must have; None for what
                the environment says, False for a support that this process has made.

        Raises:
            SignatureError: a required signature is missing or wrong.
            InputError: the file is missing, is not a support file, has another major format
                version, its contents changed since it was saved, or no enrolment gives them.
        """
        data = read_support(path)
        check_signature(data, path, require_signature)
        return parse_support(data, path)

    def check(self, manifest: Manifest) -> None:
        """Refuse a support that another model or another preprocessing made.

        Args:
            manifest: the manifest of the bundle that will use the support.

        Raises:
            InputError: it was made by another model.
        """
        again = "enroll the class again with this bundle"
        if self.fingerprint != manifest.fingerprint:
            here = describe_model(manifest)
            other = "the same kind with other weights" if here == self.model else self.model
            raise InputError(
                f"support {self.name!r} was made by another model ({other}; the bundle is {here})",
                again,
            )
        if self.preprocess != manifest.preprocess.fingerprint:
            raise InputError(f"support {self.name!r} was made with another preprocessing", again)


def describe_model(manifest: Manifest) -> str:
    """Return preset, variant and image size, such as `vitb14 full 518 px`."""
    model = manifest.model
    return f"{model['preset']} {model['variant']} {model['image_size']} px"


def check_class_name(name: str) -> None:
    """Refuse a class name that cannot name a folder on some system.

    Raises:
        InputError: the name is empty, too long (in characters, or in bytes of UTF-8), starts or
            ends with a dot, is a device's on Windows, or holds a separator, a control character or
            one of `<>:"|?*`.
    """
    forbidden = sorted({c for c in name if c in '/\\<>:"|?*' or not c.isprintable()})
    if forbidden:
        shown = " ".join(ascii(character) for character in forbidden)
        raise InputError(f"class name {name!r} holds {shown}", "it names folders: leave that out")
    if not name or name != name.strip(". ") or name != name.strip() or len(name) > _MAX_NAME:
        raise InputError(
            f"{name!r} is not a valid class name",
            f"it needs 1 to {_MAX_NAME} characters, and no dot or space at either end",
        )
    if (count := len(name.encode())) > _MAX_BYTES:
        raise InputError(
            f"class name {name!r} has {count} bytes", f"it names folders: use at most {_MAX_BYTES}"
        )
    if name.partition(".")[0].rstrip().casefold() in _DEVICES:
        raise InputError(
            f"class name {name!r} is a device on Windows", "it names folders: add something to it"
        )


def read_support(path: str | Path) -> bytes:
    """Return a support file's bytes.

    Raises:
        InputError: the file is missing, too large, or no file.
    """
    try:
        if os.path.isdir(path):
            raise InputError(
                f"support {path} cannot be read: it is a folder",
                "name a file in it that `uino-deploy enroll` wrote",
            )
        return read_regular(path, "support", MAX_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"support {path} does not exist") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def parse_support(data: bytes, path: str | Path) -> Support:
    """Return the class that a support file's bytes hold; `path` is for messages.

    Raises:
        InputError: see `Support.load`.
    """
    metadata, tensors = _parse(data, path)
    damaged = InputError(f"support {path} is damaged", "enroll the class again")
    if not {"prototypes"} <= tensors.keys() <= _RANKS.keys():
        raise damaged
    if any(array.ndim != _RANKS[name] for name, array in tensors.items()):
        raise damaged
    if _digest(tensors) != metadata.digest:
        raise damaged
    wrong = _impossible(metadata.shots, tensors) or _no_line(metadata.calibration)
    if wrong:
        raise InputError(f"support {path}: {wrong}", "enroll the class again")
    return Support(
        name=metadata.name,
        shots=metadata.shots,
        precision=metadata.precision,
        model=metadata.model,
        fingerprint=metadata.fingerprint,
        preprocess=metadata.preprocess,
        calibration=metadata.calibration,
        **tensors,
    )


def _parse(data: bytes, path: str | Path) -> tuple[_Metadata, dict[str, Array]]:
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        strings = msgspec.json.decode(data[8 : 8 + length], type=_Header).metadata
        _check_format(path, strings)
        return msgspec.convert(strings, _Metadata, strict=False), tensors
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> InputError:
    return InputError(
        f"support {path} cannot be read: {error}", "make one with `uino-deploy enroll`"
    )


def _impossible(shots: int, tensors: Mapping[str, Array]) -> str:
    """Return why no enrolment gives these tensors; empty if one can."""
    for name, array in tensors.items():
        if array.dtype not in (np.float32, np.float16):
            return f"{name} is {array.dtype}, not float32 or float16"
        if not np.isfinite(array).all():
            return f"{name} holds numbers that are not finite"
        # A prompt may be zero in a model that was not trained; features never are.
        if name != "sparse" and not array.any():
            return f"{name} is zero throughout"
    if shots < 1:
        return f"it says {shots} shots"
    for name in ("deep", "weight"):
        if name in tensors and len(tensors[name]) != shots:
            return f"it says {shots} shots, {name} holds {len(tensors[name])}"
    return ""


def _no_line(calibration: Calibration | None) -> str:
    """Return why a calibration cannot be; empty if it can."""
    if calibration is None:
        return ""
    if math.isfinite(calibration.middle) and 0 < calibration.scale < math.inf:
        return ""
    return f"its calibration is {calibration.middle}, {calibration.scale}"


def _check_format(path: str | Path, strings: Mapping[str, str]) -> None:
    if strings.get("format") != FORMAT:
        raise InputError(f"{path} is not a support file", "make one with `uino-deploy enroll`")
    version = strings.get("format_version", "")
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise InputError(
            f"support {path} has format version {version!r}; this program reads {FORMAT_VERSION}",
            "enroll the class again",
        )


def _digest(tensors: Mapping[str, Array]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes: safetensors has no checksum."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
