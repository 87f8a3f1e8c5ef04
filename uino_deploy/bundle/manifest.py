"""A bundle: a folder whose manifest names, describes and hashes everything in it.

No file of a bundle is read before it is checked: `Bundle.open` refuses a manifest with another
major schema, graphs that call other operators, a path that leaves the folder, and a file that is
missing or changed; `Bundle.path` returns only files that passed.

Who made the manifest is another matter, which `uino_deploy.bundle.signature` decides where a
signature is required: the manifest is read once, and the bytes that were checked are those parsed.

Nothing reaches outside the folder: a manifest names plain paths inside it, and what is written into
a bundle stays inside it. A file may still be a link to a regular file elsewhere, as in the caches
of Hugging Face and DVC: who downloaded the bundle made that link, not the manifest, and the file is
read only if its bytes have the manifest's hash, so where they lie makes no difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from uino_deploy.bundle.signature import Required, check_signature, signature_path
from uino_deploy.config import UinoConfig
from uino_deploy.documents import DocumentError, check_depth, decode_json
from uino_deploy.errors import BundleError, InputError
from uino_deploy.files import atomic_file, sha256
from uino_deploy.images import IMAGENET_MEAN, IMAGENET_STD
from uino_deploy.pipeline import QUERY, WHOLE

SCHEMA = "1.0"
OPERATORS = 2
"""The version of our operators that a bundle's graphs call; `kernels.identity` has the same."""
MANIFEST = "manifest.json"
# Far beyond any bundle of this program, whose largest model takes 1.3 GB in float32; without a
# limit a sparse file of a terabyte is hashed for hours.
MOST_MANIFEST_BYTES = 16 << 20
MOST_BUNDLE_BYTES = 64 << 30

# Numbers that a manifest may hold; what no bundle can have is refused as it is read.
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
_Some = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
_Opset = Annotated[int, msgspec.Meta(ge=1, le=1000)]
_Level = Annotated[float, msgspec.Meta(ge=-1000, le=1000)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Error = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Scale = Annotated[float, msgspec.Meta(gt=0, le=1000)]

# What a source's role is called on the command line.
_EXPORTED_FROM = {
    "model": "--checkpoint",
    "encoder": "--encoder-checkpoint",
    "decoder": "--sam-checkpoint",
}

DType = Literal["float32", "float16"]
Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a piece; a dimension that is a name ("batch", "shots") is dynamic."""

    name: str
    shape: list[_Count | str]
    dtype: DType


class Quantisation(msgspec.Struct, frozen=True, kw_only=True):
    """How an int8 or fp8 piece was made.

    Attributes:
        layers: how many matrix products compute in 8 bits.
        left_out: the names of those that do not because it hurts them most.
        images: how many calibration images set the scales.
        smoothed: how many layers have a smoothing folded into the norm before them.
        rest: the precision of everything else in the piece.
    """

    layers: _Some
    left_out: list[str]
    images: _Some
    smoothed: _Some = 0
    rest: Literal["fp32", "fp16"] = "fp32"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How `--precision auto` chose the types, and its forecast, to which `verify` holds the bundle.

    Attributes:
        min_mask_iou: the budget: the least IoU of a mask with float32's.
        samples: names of the images that it chose on.
        half_flops: share of a query's operations in float16, 0 to 1.
        float32: the nodes of the joined query that stay float32, and why.
        logits_error: forecast relative L2 error of the logits, of the worst of these images.
        example_error: likewise of the example stored in the bundle, so that a device can compare.
        mask_iou: forecast IoU of the masks.
    """

    min_mask_iou: _Share
    samples: list[str]
    half_flops: _Share
    float32: dict[str, str]
    logits_error: _Error
    example_error: _Error
    mask_iou: _Share


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One exported graph: its file in the bundle, its internal precision and its edges."""

    name: str
    model: str
    precision: Precision
    inputs: list[Edge]
    outputs: list[Edge]
    quantisation: Quantisation | None = None


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """How an image becomes the encoder's input; `uino_deploy.images` is the one implementation."""

    size: _Count
    mean: tuple[_Level, _Level, _Level] = IMAGENET_MEAN
    std: tuple[_Scale, _Scale, _Scale] = IMAGENET_STD
    image_filter: str = "bicubic"
    mask_filter: str = "box"

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of these values."""
        return _digest(self)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source checkpoint: its purpose, its file name (without folder), and its hash."""

    role: str
    name: str
    sha256: str
    trained: bool


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of a bundle.

    `untrained` names the parts that hold seeded random weights; `sbom` is the file in the bundle
    that lists the software that made it, in CycloneDX, which earlier versions did not write.
    """

    created_by: str
    versions: dict[str, str]
    sources: list[Source] = msgspec.field(default_factory=list)
    untrained: list[str] = msgspec.field(default_factory=list)
    seed: int | None = None
    command: list[str] | None = None
    sbom: str | None = None


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file's SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `manifest.json`; unknown fields, from a newer minor schema, are ignored.

    `operators` is the version of our operators that the graphs call. `fingerprint` names the
    configuration and the weights that a support depends on, never the graphs, so a bundle exported
    again by another version takes the supports of the first. `limits` holds the largest "batch"
    and "shots" that the exporter allowed, if it set any. `decision` is that of `--precision auto`.
    """

    schema: str = SCHEMA
    operators: _Count = OPERATORS
    model: dict[str, Any]
    fingerprint: str
    preprocess: Preprocess
    opset: _Opset
    pieces: dict[str, Piece]
    reference: str
    provenance: Provenance
    limits: dict[str, _Count] = msgspec.field(default_factory=dict)
    decision: Decision | None = None
    licences: list[str] = msgspec.field(default_factory=list)
    kernels: dict[str, Any] = msgspec.field(default_factory=dict)
    plans: dict[str, Any] = msgspec.field(default_factory=dict)
    report: str | None = None
    files: dict[str, FileEntry] = msgspec.field(default_factory=dict)


class _Versions(msgspec.Struct):
    schema: str
    operators: int = 1  # before a manifest said so


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its manifest and its model's configuration.

    `require_signature` is how it was opened; the supports that it is used with are read alike.
    """

    root: Path
    manifest: Manifest
    config: UinoConfig
    require_signature: Required = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        verify: bool = True,
        replacing: str | None = None,
        require_signature: Required = None,
    ) -> Bundle:
        """Open a bundle and check everything in it.

        Args:
            path: the bundle's folder.
            verify: hash every file (about a second for each gigabyte). Without it their paths,
                presence and sizes are still checked, and files that links lead to outside the
                folder are still hashed.
            replacing: a folder of the bundle to skip because it is about to be rebuilt: a damaged
                plan must not block the build that repairs it.
            require_signature: the public key's file whose signature the manifest must have; None
                for what the environment says, False for a bundle that this process has made.

        Raises:
            SignatureError: a required signature is missing or wrong.
            BundleError: the path is not a bundle, its major schema or the version of its operators
                is another, a path leaves the folder, or a file is missing or differs from the
                manifest.
        """
        root = Path(path)
        _, manifest = read_manifest(root, require_signature)
        try:
            config = UinoConfig.from_dict(manifest.model)
        except InputError as error:
            raise BundleError(f"{root / MANIFEST}: {error}") from error
        _check_operators(root, manifest, config)
        _check_sections(root, manifest)
        _check_total(root, manifest)
        checked = {
            name: entry
            for name, entry in manifest.files.items()
            if replacing is None or not name.startswith(f"{replacing}/")
        }
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            list(pool.map(lambda n: _check_file(root, n, checked[n], verify), checked))
        return cls(root, manifest, config, require_signature)

    def path(self, relative: str) -> Path:
        """Return the path of a file in the bundle.

        Raises:
            BundleError: the manifest does not list that file, so it was not checked.
        """
        if relative not in self.manifest.files:
            raise BundleError(f"{self.root}: {relative!r} is not listed in its manifest")
        return self.root / relative

    def within(self, folder: str) -> list[str]:
        """Return the listed files in a folder of the bundle: what else lies there is not ours."""
        return [name for name in self.manifest.files if name.startswith(f"{folder}/")]

    def read(self, relative: str) -> bytes:
        """Return a file's bytes, checked as they were read.

        Raises:
            BundleError: the manifest does not list that file, or it has changed.
        """
        path = self.path(relative)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise self.changed(relative) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[relative].sha256:
            raise self.changed(relative)
        return data

    def changed(self, relative: str) -> BundleError:
        """Return the error that a file is no longer the one that was checked."""
        return BundleError(
            f"{self.root}: {relative} was changed: its SHA-256 is not the manifest's",
            _how_to_mend(self.root, relative),
        )

    def piece(self, name: str) -> Piece:
        """Return a piece's description.

        Raises:
            BundleError: the bundle has no such piece.
        """
        if name not in self.manifest.pieces:
            known = ", ".join(self.manifest.pieces)
            raise BundleError(f"{self.root} has no piece {name!r}", f"it has {known}")
        return self.manifest.pieces[name]

    def precisions(self, piece: Piece) -> set[str]:
        """Return the precisions that a graph computes in: the whole query has its pieces' ones."""
        names = QUERY.pieces if piece.name == WHOLE else (piece.name,)
        return {self.piece(name).precision for name in names}

    def add(self, files: Iterable[str], *, without: Iterable[str] = (), **sections: Any) -> Bundle:
        """List files just written into the bundle, and replace sections of the manifest.

        Only the named files are hashed: the others keep the hashes they were checked against.

        Args:
            files: paths in the bundle, relative, with `/`.
            without: paths to remove from the list.
            sections: new values of manifest fields, such as `plans` or `report`.

        Returns:
            The bundle with its new manifest, which replaced the old one atomically.

        Raises:
            BundleError: a path is missing or leaves the folder.
        """
        entries = {name: _entry(self.root, name) for name in files}
        gone = set(without)
        kept = {name: entry for name, entry in self.manifest.files.items() if name not in gone}
        listed = dict(sorted({**kept, **entries}.items()))
        manifest = msgspec.structs.replace(self.manifest, **sections, files=listed)
        _save(self.root, manifest)
        return dataclasses.replace(self, manifest=manifest)


def write_manifest(directory: str | Path, manifest: Manifest) -> Manifest:
    """Hash every file under `directory`, list them in the manifest and write it atomically.

    Hidden files are left out: they are temporary files of other commands.

    Returns:
        The manifest as written.

    Raises:
        BundleError: a file is a link that leaves the folder, or a section names a missing file.
    """
    root = Path(directory)
    names = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if not path.is_dir() and path.name not in {MANIFEST, signature_path(MANIFEST).name}
    ]
    visible = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
    files = {name: _entry(root, name) for name in sorted(visible)}
    manifest = msgspec.structs.replace(manifest, files=files)
    _check_sections(root, manifest)
    _save(root, manifest)
    return manifest


def model_fingerprint(model: Mapping[str, Any], weights: Mapping[str, str]) -> str:
    """Return the identity of the model that makes a support: its configuration and weights.

    Args:
        model: `UinoConfig.to_dict()`.
        weights: for each part that a support passes through, a hash of its weights before any
            change of precision, so that bundles of one model in several precisions share supports.

    Returns:
        SHA-256 in hexadecimal.
    """
    return _digest([model, weights])


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def read_manifest(root: Path, required: Required = False) -> tuple[bytes, Manifest]:
    """Read a manifest once: check its signature if one is required, then parse the same bytes.

    Raises:
        SignatureError: a required signature is missing or wrong.
        BundleError: there is no manifest, or it cannot be read.
    """
    path = root / MANIFEST
    if not path.is_file():
        what = "is not a bundle" if root.exists() else "does not exist"
        raise BundleError(f"{root} {what}", f"a bundle is a folder that holds {MANIFEST}")
    if path.stat().st_size > MOST_MANIFEST_BYTES:
        raise BundleError(
            f"{path} has {path.stat().st_size:,} bytes, the most is {MOST_MANIFEST_BYTES:,}",
            "raise uino_deploy.bundle.manifest.MOST_MANIFEST_BYTES if it is right",
        )
    data = path.read_bytes()
    check_signature(data, path, required)
    try:
        versions = decode_json(data, _Versions)
        schema = versions.schema
        if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise BundleError(
                f"{path} has schema version {schema}; this program reads {SCHEMA}",
                "export the bundle again, or use the uino-deploy that made it",
            )
        manifest = decode_json(data, Manifest)
        check_depth([manifest.model, manifest.kernels, manifest.plans])
        return data, msgspec.structs.replace(manifest, operators=versions.operators)
    except DocumentError as error:
        raise BundleError(
            f"{path} is not a manifest: {error}", "export the bundle again"
        ) from error


def _check_operators(root: Path, manifest: Manifest, config: UinoConfig) -> None:
    """Refuse graphs that call other operators than this program has; some variants call none."""
    if manifest.operators == OPERATORS or config.prompt.hypercorrelation == "none":
        return
    sources = {source.role: source.name for source in manifest.provenance.sources}
    options = [
        f"{option} {shlex.quote(sources[role])}"
        for role, option in _EXPORTED_FROM.items()
        if role in sources
    ]
    command = " ".join(["uino-deploy export", *options, f"-o {shlex.quote(str(root))} --force"])
    raise BundleError(
        f"{root} calls version {manifest.operators} of our operators, and this program has "
        f"version {OPERATORS}",
        f"export it again, with the options it was exported with: {command}",
    )


def _check_total(root: Path, manifest: Manifest) -> None:
    """Refuse a bundle too large to be hashed in reasonable time, or with an impossible size."""
    sizes = [entry.size for entry in manifest.files.values()]
    if min(sizes, default=0) < 0:
        raise BundleError(f"{root / MANIFEST} lists a file of a negative size")
    if sum(sizes) > MOST_BUNDLE_BYTES:
        raise BundleError(
            f"{root / MANIFEST} lists {sum(sizes):,} bytes, the most is {MOST_BUNDLE_BYTES:,}",
            "raise uino_deploy.bundle.manifest.MOST_BUNDLE_BYTES if the bundle is right",
        )


def _check_sections(root: Path, manifest: Manifest) -> None:
    """Refuse sections that contradict each other or name unlisted files."""
    named = [manifest.reference, *(piece.model for piece in manifest.pieces.values())]
    if manifest.report is not None:
        named.append(manifest.report)
    if manifest.provenance.sbom is not None:
        named.append(manifest.provenance.sbom)
    for name in named:
        _inside(root, name)
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST} names {name!r} but does not list its hash")
    for key, piece in manifest.pieces.items():
        if key != piece.name:
            raise BundleError(f"{root / MANIFEST}: piece {key!r} is named {piece.name!r}")


def _check_file(root: Path, name: str, entry: FileEntry, verify: bool) -> None:
    path = _inside(root, name)
    again = _how_to_mend(root, name)
    if not path.is_file():
        raise BundleError(f"{root}: {name} is missing", again)
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(f"{root}: {name} has {size} bytes, its manifest says {entry.size}", again)
    if (verify or _leaves(root, path)) and sha256(path) != entry.sha256:
        raise BundleError(f"{root}: {name} was changed: its SHA-256 is not the manifest's", again)


def _how_to_mend(root: Path, name: str) -> str:
    """Return what to do about a damaged file: a plan is rebuilt where it is used."""
    folder, _, target = PurePosixPath(name).parent.as_posix().partition("/")
    backend, _, arch = target.rpartition("-")
    if folder == "plans" and backend:
        place = shlex.quote(str(root))
        return f"uino-deploy build {place} --backend {backend} --arch {arch} --force"
    return "copy or export the bundle again"


def _inside(root: Path, name: str) -> Path:
    """Return `root / name`, refusing a name that leaves the folder."""
    pure = PurePosixPath(name)
    plain = name == str(pure) and not pure.is_absolute() and ".." not in pure.parts
    # A backslash or a drive's colon is an ordinary character here, but an escape on Windows.
    if not plain or name == "." or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"{root}: the path {name!r} is not a plain path inside the bundle")
    return root / name


def _leaves(root: Path, path: Path) -> bool:
    """Return whether a link leads a path out of the folder."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _entry(root: Path, name: str) -> FileEntry:
    path = _inside(root, name)
    if _leaves(root, path):
        raise BundleError(
            f"{root}: {name} is a link that leaves the bundle", "copy the bundle with `cp -rL`"
        )
    if not path.is_file():
        raise BundleError(f"{root}: {name} is missing")
    return FileEntry(sha256=sha256(path), size=os.path.getsize(path))


def _save(root: Path, manifest: Manifest) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    with atomic_file(root / MANIFEST, force=True, through=False) as temporary:
        temporary.write_bytes(text + b"\n")
