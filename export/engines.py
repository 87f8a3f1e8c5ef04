"""`build_engines`: the bundle's ONNX files to TensorRT or TensorRT-RTX plans, checked."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import uino_deploy
from uino_deploy.bundle import Bundle, Piece
from uino_deploy.errors import BuildError, CheckFailed, DependencyError, InputError, OutputExists
from uino_deploy.export.engine_job import MODULES, Job, Outcome, Progress
from uino_deploy.files import sha256
from uino_deploy.plans import EngineBackend, PlanInfo, plan_folder

# What TensorRT-RTX 1.7 can build for without the GPU; TensorRT builds for the GPU at hand.
RTX_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
Shapes = Mapping[str, tuple[int, int, int]]
_TYPE_NAMES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_OPERATORS = ("prompt", "query")


def parse_shapes(values: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Read `--shapes NAME:MIN:OPT:MAX` options; NAME is a dynamic dimension, batch or shots.

    Raises:
        InputError: not of that form, or not ascending from 1.
    """
    shapes = {}
    for value in values:
        name, *numbers = value.split(":")
        if (
            name not in ("batch", "shots")
            or len(numbers) != 3
            or not all(map(str.isdigit, numbers))
        ):
            raise InputError(
                f"--shapes {value} is not NAME:MIN:OPT:MAX",
                "for example batch:1:1:4 or shots:1:5:5",
            )
        least, usual, largest = map(int, numbers)
        if not 1 <= least <= usual <= largest:
            raise InputError(f"--shapes {value}: the three sizes must ascend from 1")
        shapes[name] = (least, usual, largest)
    return shapes


def build_engines(
    bundle: Bundle,
    backend: EngineBackend,
    arch: str,
    *,
    pieces: Sequence[str] = (),
    shapes: Shapes | None = None,
    workspace: int | None = None,
    timing_cache: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _note: None,
) -> list[PlanInfo]:
    """Build a bundle's pieces for one target and add the plans to the bundle.

    Args:
        bundle: opened.
        backend: which TensorRT.
        arch: target, such as "sm_89".
        pieces: which; all when empty.
        shapes: for `batch` and `shots` the least, usual and largest size; 1 when not given.
        workspace: bytes of scratch memory; the library's own limit when None.
        timing_cache: a file of tactic timings to use and extend.
        force: replace plans that are there.
        progress: called with notes.

    Returns:
        What is known of each plan.

    Raises:
        InputError: an architecture or piece that cannot be built.
        DependencyError: the library is not installed.
        OutputExists: a plan is there and `force` is not given.
        BuildError: the parser or builder failed, or its process died.
        CheckFailed: the network does not compute in the piece's precision.
    """
    if backend == "tensorrt-rtx" and arch not in RTX_ARCHITECTURES:
        raise InputError(
            f"--arch {arch}: TensorRT-RTX builds for {', '.join(RTX_ARCHITECTURES)}",
            "Jetson and datacenter GPUs need --backend tensorrt on the device",
        )
    _require(backend)
    names = list(pieces) or list(bundle.manifest.pieces)
    folder = plan_folder(backend, arch)
    built = [name for name in names if f"{folder}/{name}.plan" in bundle.manifest.files]
    if built and not force:
        raise OutputExists(f"{bundle.root / folder} has {', '.join(built)}", "use --force")
    infos = []
    with tempfile.TemporaryDirectory(dir=bundle.root, prefix=".plans-") as temporary:
        for name in names:
            piece = bundle.piece(name)
            progress(f"building {name} for {arch}")
            job = Job(
                backend=backend,
                onnx=str(bundle.path(piece.model)),
                plan=str(Path(temporary, f"{name}.plan")),
                arch=arch,
                shapes=profile_of(piece, shapes or {}),
                workspace=workspace,
                timing_cache=None if timing_cache is None else str(timing_cache),
            )
            infos.append(_finish(bundle, piece, job, run_job(job, progress)))
        _install(bundle, Path(temporary), folder, infos)
    return infos


def profile_of(piece: Piece, shapes: Shapes) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Return the least, usual and largest shape of each input with dynamic dimensions."""
    profile = {}
    for edge in piece.inputs:
        if any(isinstance(size, str) for size in edge.shape):
            least, usual, largest = (
                [s if isinstance(s, int) else shapes.get(s, (1, 1, 1))[i] for s in edge.shape]
                for i in range(3)
            )
            profile[edge.name] = (least, usual, largest)
    return profile


def run_job(job: Job, progress: Callable[[str], None] = lambda _note: None) -> Outcome:
    """Run a job in a process of its own.

    Raises:
        BuildError: it failed or died; with the library's last words.
    """
    what = Path(job.onnx).name
    outcome = None
    command = [sys.executable, "-m", "uino_deploy.export.engine_job"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        # A process that died before it read its job is reported below, with its status.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(msgspec.json.encode(job))
        for line in process.stdout:
            message = msgspec.json.decode(line)
            if "progress" in message:
                step = msgspec.convert(message["progress"], Progress)
                progress(f"{what}: {step.phase} {step.step}/{step.steps}")
            else:
                outcome = msgspec.convert(message["outcome"], Outcome)
        status = process.wait()
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
    if outcome is None:
        raise BuildError(f"{what}: the builder's process died with status {status}: {words[-1]}")
    if outcome.error:
        raise BuildError(f"{what}: {job.backend} {outcome.version}: {outcome.error}")
    return outcome


def _require(backend: EngineBackend) -> None:
    from importlib.util import find_spec

    if find_spec(MODULES[backend]) is None:
        raise DependencyError(
            f"{backend} is not installed", f"pip install 'uino-deploy[{backend}]'"
        )


def _finish(bundle: Bundle, piece: Piece, job: Job, outcome: Outcome) -> PlanInfo:
    """Check the network that was built, and describe the plan."""
    _check_precision(piece, outcome)
    info = PlanInfo(
        piece=piece.name,
        backend=job.backend,
        version=outcome.version,
        arch=job.arch,
        precision=piece.precision,
        shapes=job.shapes,
        layers=outcome.layers,
        route="function" if piece.name in _OPERATORS else "none",
        onnx_sha256=bundle.manifest.files[piece.model].sha256,
        plan_sha256=sha256(job.plan),
        built_by=f"uino-deploy {uino_deploy.__version__}",
    )
    text = msgspec.json.format(msgspec.json.encode(info), indent=2)
    Path(job.plan).with_suffix(".json").write_bytes(text + b"\n")
    return info


def _check_precision(piece: Piece, outcome: Outcome) -> None:
    """Refuse a network that does not compute in the piece's type at all, or only in part of it."""
    wanted = _TYPE_NAMES[piece.precision]
    if not outcome.layers.get(wanted):
        raise CheckFailed(
            f"{piece.model} is {piece.precision}, and the parsed network has no such layer: "
            f"{outcome.layers}"
        )


def _install(bundle: Bundle, temporary: Path, folder: str, infos: list[PlanInfo]) -> None:
    """Move the plans into the bundle and list them; the manifest is replaced last, atomically."""
    # Another build may have added its plans since this bundle was opened.
    bundle = Bundle.open(bundle.root, verify=False)
    target = bundle.root / folder
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for path in sorted(temporary.iterdir()):
        shutil.move(path, target / path.name)
        files.append(f"{folder}/{path.name}")
    name = folder.removeprefix("plans/")
    known = dict(bundle.manifest.plans.get(name, {}))
    known.update({info.piece: f"{folder}/{info.piece}.plan" for info in infos})
    bundle.add(files, plans={**bundle.manifest.plans, name: known})
