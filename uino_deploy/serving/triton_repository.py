"""A model repository for Triton Inference Server: the pieces, the classes, and their ensembles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uino_deploy.bundle import Bundle, Edge, Piece
from uino_deploy.bundle.checked import piece_files
from uino_deploy.bundle.plans import PlanInfo, plan_path, plans_of, rebuild_command
from uino_deploy.dependencies import require
from uino_deploy.errors import BundleError, InputError
from uino_deploy.files import atomic_directory, refuse_input
from uino_deploy.pipeline import CLASS, QUERY
from uino_deploy.serving import triton_config as config

TritonBackend = Literal["tensorrt", "onnxruntime", "openvino"]
DeviceKind = Literal["cpu", "gpu"]

LIBRARY, SEGMENT, ENSEMBLE = "library", "segment", "query"
"""Names of the models beside the pieces."""

MARKER = "segment/config.pbtxt"
"""The file by which a repository of this command is known."""

_VERSION = "1"
_PIECES = tuple(dict.fromkeys((*CLASS.pieces, *QUERY.pieces)))


@dataclass(frozen=True)
class Written:
    """A repository that was written.

    Attributes:
        models: the names of its models.
        command: how to start the server with it.
        notes: what the server must be or have.
    """

    models: tuple[str, ...]
    command: tuple[str, ...]
    notes: tuple[str, ...]


def write_repository(
    bundle: Bundle,
    classes: Path,
    backend: TritonBackend,
    folder: Path,
    *,
    device: DeviceKind | None = None,
    instances: int = 1,
    shots: int = 1,
    cuda_graphs: bool = False,
    arch: str | None = None,
    force: bool = False,
) -> Written:
    """Write a model repository.

    Its models: the five pieces; `library`, which turns a class's name into its tensors, which
    never travel with a request; `segment`, from an image and a name to logits and score; `query`,
    the same from an image and the class's tensors.

    Args:
        bundle: the opened bundle.
        classes: the folder of support files, by the path that the server sees.
        backend: the server's backend that runs the pieces.
        folder: receives the repository.
        device: where the pieces run; the backend's usual one if None.
        instances: instances of each piece.
        shots: the shots of a class that warm-up, CUDA graphs and OpenVINO's static shapes are for.
        cuda_graphs: record and replay launches (TensorRT).
        arch: the architecture whose plans are taken, such as "sm_89"; None if the bundle has one.
        force: replace the folder if an earlier run wrote it.

    Raises:
        InputError: the backend has no such device or no CUDA graphs.
        BundleError: the bundle has no plans for TensorRT, or some that need a Python plugin.
        DependencyError: OpenVINO is not installed, whose form of a graph is asked for.
        OutputExists: the folder exists, and `force` is not given or no earlier run wrote it.
    """
    kind = device or ("gpu" if backend == "tensorrt" else "cpu")
    if (backend, kind) in {("tensorrt", "cpu"), ("openvino", "gpu")}:
        raise InputError(f"Triton's {backend} backend does not run on a {kind.upper()}")
    if cuda_graphs and backend != "tensorrt":
        raise InputError(f"Triton's {backend} backend has no CUDA graphs", "use tensorrt")
    plans = _plans(bundle, arch) if backend == "tensorrt" else {}
    if backend == "openvino":
        require("openvino", "openvino")
    refuse_input(folder, [bundle.root, classes])
    target = _Target(bundle, backend, kind, instances, shots, cuda_graphs, plans)
    with atomic_directory(folder, force, marker=MARKER) as made:
        for name in _PIECES:
            target.write(made, bundle.piece(name))
        _write_library(made, bundle, classes)
        _write_ensembles(made, bundle)
    models = (*_PIECES, LIBRARY, ENSEMBLE, SEGMENT)
    command = ("tritonserver", f"--model-repository={folder.absolute()}")
    return Written(models, command, tuple(_notes(backend, plans, classes, shots)))


@dataclass(frozen=True)
class _Target:
    """How the pieces of a bundle are written for one backend of the server."""

    bundle: Bundle
    backend: TritonBackend
    kind: DeviceKind
    instances: int
    shots: int
    cuda_graphs: bool
    plans: Mapping[str, PlanInfo]

    def write(self, folder: Path, piece: Piece) -> None:
        """Write a piece: its file and its configuration."""
        version = folder / piece.name / _VERSION
        version.mkdir(parents=True)
        usual = {edge.name: self._usual(piece, edge) for edge in piece.inputs}
        blocks = [
            config.instances(self.kind, self.instances),
            config.warm_up({edge.name: (edge.dtype, usual[edge.name]) for edge in piece.inputs}),
        ]
        inputs, outputs = config.edges_of(piece.inputs), config.edges_of(piece.outputs)
        if self.backend == "tensorrt":
            data = self.bundle.read(plan_path(self.plans[piece.name]))
            (version / "model.plan").write_bytes(data)
        elif self.backend == "onnxruntime":
            for name in piece_files(self.bundle, piece):
                (version / name).parent.mkdir(parents=True, exist_ok=True)
                (version / name).write_bytes(self.bundle.read(name))
            blocks.append(config.file_name(piece.model))
        else:
            from uino_deploy.runtime.openvino_backend import save_static

            save_static(self.bundle, piece, usual, version / "model.xml")
            inputs = [(name, dtype, usual[name]) for name, dtype, _ in inputs]
            outputs = [
                (name, dtype, [self._size(size) for size in shape])
                for name, dtype, shape in outputs
            ]
        if self.cuda_graphs:
            blocks.append(config.cuda_graphs(usual))
        text = config.model(
            piece.name,
            self.backend,
            config.tensors("input", inputs),
            config.tensors("output", outputs),
            *blocks,
        )
        (folder / piece.name / "config.pbtxt").write_text(text, "utf-8")

    def _usual(self, piece: Piece, edge: Edge) -> list[int]:
        """Return the shape of an input that is most often sent."""
        if piece.name in self.plans and edge.name in self.plans[piece.name].shapes:
            return self.plans[piece.name].shapes[edge.name][1]
        return [self._size(size) for size in edge.shape]

    def _size(self, size: int | str) -> int:
        return size if isinstance(size, int) else self.shots if size == "shots" else 1


def _write_library(folder: Path, bundle: Bundle, classes: Path) -> None:
    version = folder / LIBRARY / _VERSION
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("triton_library.py"), version / "model.py")
    manifest = bundle.manifest
    text = config.model(
        LIBRARY,
        "python",
        config.tensors("input", [("name", "string", [1])]),
        config.tensors("output", _class_tensors(bundle)),
        config.instances("cpu", 1),
        config.parameter("classes", str(classes.absolute())),
        config.parameter("fingerprint", manifest.fingerprint),
        config.parameter("preprocess", manifest.preprocess.fingerprint),
    )
    (folder / LIBRARY / "config.pbtxt").write_text(text, "utf-8")


def _write_ensembles(folder: Path, bundle: Bundle) -> None:
    image = [(each.name, each.dtype, each.shape) for each in bundle.piece("encoder").inputs]
    name: tuple[str, str, config.Shape] = ("name", "string", [1])
    answers = config.tensors("output", config.edges_of(bundle.piece("decoder").outputs))
    named = _class_tensors(bundle)
    steps = [_step(bundle, each) for each in QUERY.pieces]
    given = {each: each for each, _, _ in named}
    texts = {
        ENSEMBLE: config.ensemble(
            ENSEMBLE, config.tensors("input", [*image, *named]), answers, steps
        ),
        SEGMENT: config.ensemble(
            SEGMENT,
            config.tensors("input", [*image, name]),
            answers,
            [(LIBRARY, {"name": "name"}, given), *steps],
        ),
    }
    for each, text in texts.items():
        (folder / each / _VERSION).mkdir(parents=True)  # an ensemble has a version and no file
        (folder / each / "config.pbtxt").write_text(text, "utf-8")


def _step(bundle: Bundle, name: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return a piece as a step: its own names and the route's."""
    piece = bundle.piece(name)
    inputs, outputs = (
        {edge.name: QUERY.name(edge.name) for edge in edges}
        for edges in (piece.inputs, piece.outputs)
    )
    return name, inputs, outputs


def _class_tensors(bundle: Bundle) -> list[tuple[str, str, config.Shape]]:
    """Return what the query's pieces take of a class, under the route's names."""
    pieces = [bundle.piece(name) for name in QUERY.pieces]
    made = {QUERY.name(edge.name) for piece in pieces for edge in piece.outputs}
    return [
        (QUERY.name(edge.name), edge.dtype, edge.shape)
        for piece in pieces
        for edge in piece.inputs
        if QUERY.name(edge.name) not in made and edge.name != "image"
    ]


def _plans(bundle: Bundle, arch: str | None) -> dict[str, PlanInfo]:
    """Return the plan of each piece for one architecture."""
    known = [each for each in plans_of(bundle) if each.backend == "tensorrt"]
    archs = sorted({each.arch for each in known})
    build = rebuild_command(bundle, "tensorrt", arch or "sm_XX")
    if arch is None and len(archs) > 1:
        raise InputError(f"{bundle.root} has plans for {', '.join(archs)}", "choose with --arch")
    chosen = {each.piece: each for each in known if arch is None or each.arch == arch}
    missing = [name for name in _PIECES if name not in chosen]
    if missing:
        where = f" for {arch}" if arch else ""
        raise BundleError(
            f"{bundle.root} has no TensorRT plan of {', '.join(missing)}{where}", build
        )
    python = [name for name, each in chosen.items() if each.route == "ipluginv3"]
    if python:
        raise BundleError(
            f"the plans of {', '.join(python)} call plugins in Python, which Triton cannot load",
            "build them with TensorRT 10.9 or newer, which puts the kernels into the plan",
        )
    return chosen


def _notes(
    backend: TritonBackend, plans: Mapping[str, PlanInfo], classes: Path, shots: int
) -> list[str]:
    """Return what the server needs."""
    notes = [f"the server must see the classes at {classes.absolute()}, and needs numpy for them"]
    if plans:
        one = next(iter(plans.values()))
        notes.append(
            f"the plans run with TensorRT {one.version} on {one.arch} alone: take the release of "
            "Triton that has it"
        )
        if any(each.route == "aot" for each in plans.values()):
            notes.append("the kernels are inside the plans: no plugin library, no LD_PRELOAD")
    if backend == "openvino":
        notes.append(f"a request holds one image, and every class has {shots} shot(s)")
        notes.append(
            "this backend cannot be told to keep to float32: on a processor with bfloat16 it "
            "computes in that"
        )
    return notes
