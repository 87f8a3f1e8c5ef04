"""`build_engines`: checked TensorRT or TensorRT-RTX plans from a bundle's ONNX files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

import uino_deploy
from uino_deploy.bundle import Bundle, Piece
from uino_deploy.bundle.checked import copy_kernels, kernels_folder
from uino_deploy.bundle.external_weights import external_weights
from uino_deploy.bundle.plans import (
    EngineBackend,
    EngineLayers,
    PlanInfo,
    compute_capability,
    plan_folder,
    plan_path,
)
from uino_deploy.child import Child, ChildFailed
from uino_deploy.dependencies import (
    JETSON_TENSORRT,
    TEGRA_RELEASE,
    is_importable,
    read_jetpack,
    require,
)
from uino_deploy.errors import (
    BuildError,
    CheckFailed,
    DependencyError,
    InputError,
    OutputExists,
    UinoDeployError,
)
from uino_deploy.export.audit import (
    FP8_SINCE,
    check_engine,
    check_graph,
    check_network,
    check_plugins,
    check_quantised,
)
from uino_deploy.export.engine_check import Answer, Request
from uino_deploy.export.engine_job import MODULES, Job, Outcome, Progress, ranging
from uino_deploy.export.graph_reader import GraphSummary
from uino_deploy.export.inspector import read_inspector
from uino_deploy.export.products import check_products, read_layers, read_plan
from uino_deploy.files import refuse_read_only, sha256
from uino_deploy.miscompiles import MISCOMPILES, known_miscompiles
from uino_deploy.pipeline import QUERY, WHOLE
from uino_deploy.workspace import locked, work_folder

# The architectures that TensorRT-RTX 1.7 builds for without a GPU; TensorRT needs the GPU itself.
RTX_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
Shapes = Mapping[str, tuple[int, int, int]]
Plugins = Literal["auto", "none"]

# Seconds between two notes about a builder's progress.
_NOTE_SECONDS = 10.0


def parse_shapes(values: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Read `--shapes NAME:MIN:OPT:MAX` options; NAME is a dynamic dimension, batch or shots.

    Raises:
        InputError: the form is wrong, or the sizes do not ascend from 1.
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
    tf32: bool = False,
    timing_cache: Path | None = None,
    plugins: Plugins = "auto",
    kernels: Path | None = None,
    workarounds: Sequence[str] = (),
    force: bool = False,
    progress: Callable[[str], None] = lambda _note: None,
) -> list[PlanInfo]:
    """Build a bundle's pieces for one target and add the plans to the bundle.

    Args:
        bundle: opened.
        backend: tensorrt or tensorrt-rtx.
        arch: target, such as "sm_89".
        pieces: names of the pieces to build; all when empty.
        shapes: the least, usual and largest size of `batch` and `shots`; 1 if not given.
        workspace: limit of scratch memory in bytes; the library's own if None.
        tf32: let fp32 products and convolutions round their operands to TF32 (10 bits of
            mantissa): faster on the GPU, and outside fp32's tolerance.
        timing_cache: a file of tactic timings to read and extend.
        plugins: "auto" builds our operators as plugins if the backend has plugins, and fails if
            they are not in the engine; "none" builds their portable ONNX functions.
        kernels: folder of compiled kernels; the bundle's own for the architecture if None. If
            an engine needs them at run time (route "ipluginv3"), they are added to the bundle.
        workarounds: names of known miscompiles (`uino_deploy.miscompiles`) to work around.
        force: replace existing plans.
        progress: called with a note before each step.

    Returns:
        A description of each plan.

    Raises:
        InputError: the architecture or a piece is unknown, the backend lacks an option, or the
            bundle cannot be written to.
        DependencyError: the library, a driver or a GPU is missing.
        OutputExists: a plan exists and `force` is not given.
        BuildError: TensorRT would silently change a graph, the parser or builder failed, or its
            process died.
        CheckFailed: an engine is not in its piece's precision, lacks the requested plugins, or is
            wrong on the bundle's example; none of the new plans stays installed.
    """
    names = list(dict.fromkeys(pieces)) or list(bundle.manifest.pieces)
    chosen = [bundle.piece(name) for name in names]
    _check_request(bundle, backend, arch, chosen, shapes or {}, timing_cache)
    refuse_read_only(bundle.root)
    environment = environment_of(workarounds)
    _require(backend)
    folder = plan_folder(backend, arch)
    built = [name for name in names if f"{folder}/{name}.plan" in bundle.manifest.files]
    if built and not force:
        raise OutputExists(f"{bundle.root / folder} has {', '.join(built)}", "use --force")
    own = kernels_folder(arch)
    has_kernels = kernels is not None or bool(bundle.within(own))
    as_plugins = plugins == "auto" and backend == "tensorrt"
    # Check all graphs first: the last must not fail after minutes of building the others.
    summaries = [check_graph(bundle, piece) for piece in chosen]
    if as_plugins and not has_kernels and any(summary.calls for summary in summaries):
        raise BuildError(
            f"plugins need kernels compiled for {arch}",
            f"uino-deploy kernels build --arch {arch} -o DIR, then give --kernels DIR; or build "
            "the operators from their portable ONNX functions with --plugins none",
        )
    infos: list[PlanInfo] = []
    with work_folder(bundle.root, "plans") as temporary:
        used = kernels or (copy_kernels(bundle, arch, temporary / "own") if as_plugins else None)
        for piece, summary in zip(chosen, summaries, strict=True):
            progress(f"building {piece.name} for {arch}")
            job = Job(
                backend=backend,
                onnx=str(bundle.path(piece.model)),
                plan=str(temporary / f"{piece.name}.plan"),
                arch=arch,
                shapes=profile_of(piece, shapes or {}),
                workspace=workspace,
                tf32=tf32,
                timing_cache=None if timing_cache is None else str(timing_cache),
                plugins=as_plugins and bool(summary.calls),
                kernels=None if used is None else str(used),
                environment=environment,
            )
            info = _finish(bundle, piece, job, summary, run_job(job, progress), workarounds)
            _warn(info, infos, progress)
            infos.append(info)
        own_kernels = _stage_kernels(kernels, bundle.root / own, temporary, infos)
        _install(bundle.root, temporary, infos, own_kernels)
    _prove(bundle, infos, progress)
    return infos


def plan_engines(
    bundle: Bundle,
    backend: EngineBackend,
    arch: str,
    *,
    pieces: Sequence[str] = (),
    shapes: Shapes | None = None,
    workspace: int | None = None,
    tf32: bool = False,
    plugins: Plugins = "auto",
) -> list[PlanInfo]:
    """Return the plans that `build_engines` would build, after all checks without library or GPU.

    Each plan has only the requested values: the piece, the target, shapes, workspace and route;
    "ipluginv3" stands for either kind of plugin. Arguments and errors are those of `build_engines`.
    """
    chosen = [bundle.piece(name) for name in pieces or bundle.manifest.pieces]
    _check_request(bundle, backend, arch, chosen, shapes or {}, None)
    infos = []
    for piece in chosen:
        operators = [call.operator for call in check_graph(bundle, piece).calls]
        as_plugins = plugins == "auto" and backend == "tensorrt"
        infos.append(
            PlanInfo(
                piece=piece.name,
                backend=backend,
                version="",
                arch=arch,
                compute_capability=compute_capability(arch),
                gpu=None,
                precision=piece.precision,
                shapes=profile_of(piece, shapes or {}),
                workspace=workspace,
                tf32=tf32,
                layers={},
                matrix_layers={},
                engine=None,
                route=("ipluginv3" if as_plugins else "function") if operators else "none",
                operators=operators,
                sources={},
                plan_sha256="",
                built_by="",
                seconds=0.0,
            )
        )
    return infos


def _require(backend: EngineBackend) -> None:
    """Check that the library is installed; on a Jetson it comes from JetPack, not from pip."""
    if backend == "tensorrt" and not is_importable("tensorrt") and read_jetpack(TEGRA_RELEASE):
        raise DependencyError("tensorrt is not installed", JETSON_TENSORRT)
    require(backend, MODULES[backend])


def _check_request(
    bundle: Bundle,
    backend: EngineBackend,
    arch: str,
    pieces: Sequence[Piece],
    shapes: Shapes,
    timing_cache: Path | None,
) -> None:
    """Refuse options that the backend would ignore or does not support."""
    if not arch.removeprefix("sm_").isdigit() or not arch.startswith("sm_"):
        raise InputError(f"--arch {arch} is not an architecture", "for example sm_89")
    if backend == "tensorrt-rtx" and arch not in RTX_ARCHITECTURES:
        raise InputError(
            f"--arch {arch}: TensorRT-RTX builds for {', '.join(RTX_ARCHITECTURES)}",
            "Jetson and datacenter GPUs need --backend tensorrt on the device",
        )
    if backend == "tensorrt-rtx" and timing_cache is not None:
        raise InputError(
            "--timing-cache: TensorRT-RTX times no tactics when it builds",
            "leave it out; only --backend tensorrt uses it",
        )
    dynamic = {size for p in pieces for e in p.inputs for size in e.shape if isinstance(size, str)}
    for name, (_least, _usual, largest) in shapes.items():
        if name not in dynamic:
            raise InputError(
                f"--shapes {name}: no input of {', '.join(p.name for p in pieces)} has it"
            )
        limit = bundle.manifest.limits.get(name, largest)
        if largest > limit:
            raise InputError(f"--shapes {name}: the bundle allows {limit}, not {largest}")
    for piece in pieces:
        if "fp8" in bundle.precisions(piece) and int(arch.removeprefix("sm_")) < FP8_SINCE:
            raise InputError(
                f"{piece.name} has fp8, which {arch} does not multiply",
                "export with --precision encoder=int8 for it",
            )


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
    """Run a job in a process of its own; errors are those of `build_in`."""
    with builder(job.environment) as child:
        return build_in(child, job, progress)


def builder(environment: Mapping[str, str] | None = None) -> Child:
    """Return a process that builds engines, with these variables beside this process's own.

    Plugins that one job registers stay for the next ones.
    """
    return Child("uino_deploy.export.engine_job:build", os.environ | dict(environment or {}))


def build_in(
    child: Child, job: Job, progress: Callable[[str], None] = lambda _note: None
) -> Outcome:
    """Run a job in a builder's process.

    Args:
        child: what `builder` returned.
        job: what to build.
        progress: called with a note every few seconds.

    Raises:
        BuildError: the job failed or died; the message ends with the library's last output.
        DependencyError: a package, a driver or a GPU is missing.
        InputError: the GPU or the timing cache does not match.
    """
    what = Path(job.onnx).name
    said = started = time.monotonic()

    def note(message: Any) -> None:
        nonlocal said
        if time.monotonic() - said >= _NOTE_SECONDS:
            said = time.monotonic()
            step = msgspec.convert(message, Progress)
            progress(
                f"{what}: {step.phase} {step.step}/{step.steps}, {said - started:.0f} s so far"
            )

    try:
        outcome = msgspec.convert(child.ask(job, note), Outcome)
    except ChildFailed as error:
        raise BuildError(f"{what}: the builder's process {error}") from error
    if outcome.error:
        raise _failure(what, job, outcome)
    return outcome


def _failure(what: str, job: Job, outcome: Outcome) -> UinoDeployError:
    """Return the error that a job reported, with a hint."""
    if outcome.kind == "input":
        return InputError(outcome.error, outcome.hint)
    if outcome.kind == "dependency":
        return DependencyError(outcome.error, outcome.hint)
    hint = outcome.hint
    # Too little memory is often reported as a layer without an implementation.
    if not hint and any(
        sign in outcome.error.lower() for sign in ("workspace", "memory", "implementation")
    ):
        hint = "give it more with --workspace, or free memory on the GPU"
    return BuildError(f"{what}: {job.backend} {outcome.version}: {outcome.error}", hint)


def environment_of(workarounds: Sequence[str]) -> dict[str, str]:
    """Return the variables that work around known miscompiles.

    Raises:
        InputError: a name is unknown, or no variable works around it.
    """
    known = {each.name: each.environment for each in MISCOMPILES if each.environment}
    for name in workarounds:
        if name not in known:
            raise InputError(
                f"--workaround {name} does not exist",
                f"choose from {', '.join(known)}",
            )
    return {key: value for name in workarounds for key, value in known[name].items()}


def _warn(info: PlanInfo, others: Sequence[PlanInfo], progress: Callable[[str], None]) -> None:
    """Warn of the known miscompiles that affect a plan, except those of an earlier plan."""
    said = {name for other in others for name in other.miscompiles}
    for each in MISCOMPILES:
        if each.name in info.miscompiles and each.name not in said:
            done = ", worked around as asked" if each.name in info.workarounds else ""
            progress(f"warning: known miscompile {each.warning}{done}")


def _prove(bundle: Bundle, infos: Sequence[PlanInfo], progress: Callable[[str], None]) -> None:
    """Run the engines that this machine's GPU can load on the bundle's example.

    Raises:
        CheckFailed: an engine is wrong, or its process died; the plans are removed.
    """
    here = [info for info in infos if info.engine is not None]
    if not here:
        return
    # TF32 rounds operands to as many bits as float16.
    precisions = {
        info.piece: sorted(
            "fp16" if info.tf32 and each == "fp32" else each
            for each in bundle.precisions(bundle.piece(info.piece))
        )
        for info in here
    }
    progress("running the engines on the bundle's example")
    answer = run_check(
        Request(root=str(bundle.root), backend=infos[0].backend, precisions=precisions)
    )
    if answer.skipped:
        progress(f"warning: not checked on the bundle's example: {answer.skipped}")
    if answer.wrong:
        _remove(bundle.root, infos)
        known = sorted({name for info in infos for name in info.miscompiles})
        raise CheckFailed(
            f"{answer.wrong}: the plans were removed",
            f"known miscompiles here: {', '.join(known)}"
            if known
            else "try another TensorRT version, or export this piece in fp32",
        )


def run_check(request: Request) -> Answer:
    """Run plans on the bundle's example in a child process, which a bad plan may kill."""
    try:
        with Child("uino_deploy.export.engine_check:check") as child:
            return msgspec.convert(child.ask(request), Answer)
    except ChildFailed as error:
        return Answer(wrong=f"the process that ran the engines {error}")


def _remove(root: Path, infos: Sequence[PlanInfo]) -> None:
    """Take plans out of the bundle again."""
    target, gone = f"{infos[0].backend}-{infos[0].arch}", {info.piece for info in infos}
    names = [plan_path(info).removesuffix(".plan") for info in infos]
    files = [f"{name}{suffix}" for name in names for suffix in (".json", ".plan")]
    with locked(root):
        bundle = Bundle.open(root, verify=False, replacing="plans", require_signature=False)
        kept = {k: v for k, v in bundle.manifest.plans.get(target, {}).items() if k not in gone}
        bundle.add((), without=files, plans={**bundle.manifest.plans, target: kept})
        for name in files:
            (root / name).unlink(missing_ok=True)


def _has_islands(bundle: Bundle, piece: Piece) -> bool:
    """Return whether `--precision auto` left nodes of a piece, or of any in the whole, float32."""
    decision = bundle.manifest.decision
    kept = () if decision is None else decision.float32
    return any(piece.name in (WHOLE, name.partition("/")[0]) for name in kept)


def _finish(
    bundle: Bundle,
    piece: Piece,
    job: Job,
    summary: GraphSummary,
    outcome: Outcome,
    workarounds: Sequence[str],
) -> PlanInfo:
    """Check the built engine and describe its plan."""
    precisions = bundle.precisions(piece) | _rests(bundle, piece)
    check_quantised(piece, bundle.precisions(piece), summary.quantised, outcome.matrix_layers)
    check_network(piece, precisions, outcome.matrix_layers, _has_islands(bundle, piece))
    plugins = check_plugins(piece, summary.calls, outcome.plugins) if job.plugins else {}
    operators = [call.operator for call in summary.calls]
    # RTX engines can be built on machines that cannot run them; TensorRT builds on the GPU itself.
    unseen = job.backend == "tensorrt-rtx" and not outcome.inspector
    engine = None if unseen else read_inspector(outcome.inspector)
    if engine is not None:
        check_engine(piece, precisions, outcome.layers, engine, bool(ranging(job.shapes)))
    products = _read_back(piece, job, summary, outcome, engine)
    concerned = known_miscompiles(job.backend, outcome.version, job.arch, precisions)
    files = bundle.manifest.files
    weights = sorted(external_weights(bundle.path(piece.model)) & set(files))
    info = PlanInfo(
        piece=piece.name,
        backend=job.backend,
        version=outcome.version,
        arch=job.arch,
        compute_capability=compute_capability(job.arch),
        gpu=outcome.gpu,
        precision=piece.precision,
        shapes=job.shapes,
        workspace=job.workspace,
        tf32=job.tf32,
        layers=outcome.layers,
        matrix_layers=outcome.matrix_layers,
        engine=engine,
        products=products,
        route=outcome.route if operators else "none",
        operators=operators,
        plugins=plugins,
        miscompiles=[each.name for each in concerned],
        workarounds=list(workarounds),
        sources={name: files[name].sha256 for name in (piece.model, *weights)},
        plan_sha256=sha256(job.plan),
        built_by=f"uino-deploy {uino_deploy.__version__}",
        seconds=round(outcome.seconds, 1),
        host_memory=outcome.host_memory,
    )
    text = msgspec.json.format(msgspec.json.encode(info), indent=2)
    Path(job.plan).with_suffix(".json").write_bytes(text + b"\n")
    return info


def _rests(bundle: Bundle, piece: Piece) -> set[str]:
    """Return what a graph's quantised pieces compute everything else in."""
    names = QUERY.pieces if piece.name == WHOLE else (piece.name,)
    told = (bundle.piece(name).quantisation for name in names)
    return {each.rest for each in told if each is not None}


def _read_back(
    piece: Piece, job: Job, summary: GraphSummary, outcome: Outcome, engine: EngineLayers | None
) -> dict[str, int]:
    """Return how many quantised layers the engine really computes in 8 bits, by type.

    Raises:
        CheckFailed: not all of them.
    """
    if not summary.quantised:
        return {}
    if job.backend == "tensorrt-rtx":
        return check_products(piece.name, summary.quantised, read_plan(Path(job.plan).read_bytes()))
    if engine is None or not engine.types:  # 10.x names no types where sizes range
        raise CheckFailed(
            f"{piece.name}: the inspector gives no layer's type, so what the engine computes in "
            "8 bits cannot be checked",
            "build it for one size, without --shapes, or in fp16",
        )
    return check_products(piece.name, summary.quantised, read_layers(outcome.inspector))


def _stage_kernels(
    kernels: Path | None, own: Path, temporary: Path, infos: Sequence[PlanInfo]
) -> list[str]:
    """Copy the kernels that engines need at run time; return their paths in the bundle."""
    needed = any(info.route == "ipluginv3" for info in infos)
    if kernels is None or not needed or own.resolve() == kernels.resolve():
        return []
    place = Path("kernels", own.name)
    shutil.copytree(kernels, temporary / place)
    paths = (path for path in (temporary / place).rglob("*") if path.is_file())
    return sorted(path.relative_to(temporary).as_posix() for path in paths)


def _install(
    root: Path, temporary: Path, infos: Sequence[PlanInfo], kernels: Sequence[str]
) -> None:
    """Move plans and kernels into the bundle, which stays openable throughout.

    First the manifest drops the files to be replaced, then the files are moved, then the manifest
    lists them. A kill in between leaves a bundle without these plans.
    """
    names = [plan_path(info).removesuffix(".plan") for info in infos]
    files = {f"{n}{suffix}": Path(n).name + suffix for n in names for suffix in (".json", ".plan")}
    files.update({name: name for name in kernels})
    target, arch = f"{infos[0].backend}-{infos[0].arch}", infos[0].arch
    with locked(root):
        # Another build may have added its plans since the bundle was opened, and its signature
        # checked: whatever is written from here on has to be signed again.
        bundle = Bundle.open(root, verify=False, replacing="plans", require_signature=False)
        gone = {info.piece for info in infos}
        kept = {k: v for k, v in bundle.manifest.plans.get(target, {}).items() if k not in gone}
        bundle = bundle.add((), without=files, plans={**bundle.manifest.plans, target: kept})
        for name, staged in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / staged, root / name)
        added = {info.piece: plan_path(info) for info in infos}
        sections = {"plans": {**bundle.manifest.plans, target: {**kept, **added}}}
        if kernels:
            sections["kernels"] = {**bundle.manifest.kernels, arch: f"kernels/{arch}"}
        bundle.add(files, **sections)
