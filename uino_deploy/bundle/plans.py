"""The description of a built engine: the JSON file beside a plan, and its place in the bundle.

The plan itself is plain: trtexec and Triton Inference Server load it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import msgspec

from uino_deploy.bundle.manifest import Bundle, Precision
from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import BundleError

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
PluginRoute = Literal["aot", "ipluginv3", "function", "none"]
Profile = dict[str, tuple[list[int], list[int], list[int]]]

_MIB = 1 << 20


class EngineLayers(msgspec.Struct, kw_only=True):
    """The layers of an engine, as TensorRT's inspector reports them.

    Attributes:
        layers: the number of layers, fused ones counted once.
        types: the number of layers by the float type of their first output, without moves.
        untyped: the number of layers for which the inspector gives only a name.
        plugins: the plugin layers' names; those inside a Myelin region do not appear.
        tensors: the engine's inputs and outputs.
    """

    layers: int
    types: dict[str, int]
    untyped: int
    plugins: list[str]
    tensors: list[str]


class Gpu(msgspec.Struct, kw_only=True):
    """The GPU that an engine was built on; CUDA's version numbers, 12060 for 12.6."""

    name: str
    capability: str
    driver: int
    runtime: int


class PlanInfo(msgspec.Struct, kw_only=True):
    """The JSON file beside one plan.

    Attributes:
        piece: the piece that was built.
        backend: which TensorRT built it.
        version: the library's version; no other version runs the plan.
        arch: the GPU architecture, such as "sm_89".
        compute_capability: the same in CUDA's notation, "8.9".
        gpu: the GPU it was built on; None if TensorRT-RTX built it without one.
        precision: the precision of the piece's ONNX file.
        shapes: the smallest, usual and largest shape of each input with dynamic dimensions.
        workspace: bytes of scratch memory given to the builder; None for its own limit.
        tf32: whether fp32 products may round their operands to TF32; None in plans of versions
            that did not ask, where TensorRT's default was on.
        layers: the number of parsed network layers by float type, without constants and casts.
        matrix_layers: the same for matrix products and convolutions only; quantised products count
            under INT8 or FP8.
        products: the quantised layers that the engine computes in 8 bits, by type, as read back
            from it; empty without any, or where TensorRT 10.x names no types.
        engine: what the inspector found; None without a GPU of the architecture.
        route: "aot" or "ipluginv3" if the operators are plugins (`uino_deploy.kernels.plugins`
            explains the kinds), "function" if their ONNX functions were built in, "none"
            without operators.
        operators: the calls of our operators in the ONNX file, in file order.
        plugins: operator -> the number of its plugin layers in the parsed network.
        sources: file -> SHA-256 of the ONNX file and its weights, to detect a stale plan.
        plan_sha256: the plan's hash.
        built_by: the program that built it.
        miscompiles: names of known compiler faults that concern the plan.
        workarounds: names of those worked around.
        seconds: how long parser and builder took.
        host_memory: their peak host memory in bytes; None if it cannot be measured.
    """

    piece: str
    backend: EngineBackend
    version: str
    arch: str
    compute_capability: str
    gpu: Gpu | None
    precision: Precision
    shapes: Profile
    workspace: int | None
    layers: dict[str, int]
    matrix_layers: dict[str, int]
    engine: EngineLayers | None
    route: PluginRoute
    operators: list[str]
    sources: dict[str, str]
    plan_sha256: str
    built_by: str
    seconds: float
    host_memory: int | None = None
    tf32: bool | None = None
    products: dict[str, int] = msgspec.field(default_factory=dict)
    plugins: dict[str, int] = msgspec.field(default_factory=dict)
    miscompiles: list[str] = msgspec.field(default_factory=list)
    workarounds: list[str] = msgspec.field(default_factory=list)


def plan_folder(backend: EngineBackend, arch: str) -> str:
    """Return the folder of a target's plans, relative to the bundle."""
    return f"plans/{backend}-{arch}"


def plan_path(info: PlanInfo) -> str:
    """Return the path of a plan, relative to the bundle."""
    return f"{plan_folder(info.backend, info.arch)}/{info.piece}.plan"


def compute_capability(arch: str) -> str:
    """Return "8.9" for "sm_89" and "12.0" for "sm_120"."""
    digits = arch.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1:]}"


def equivalent_commands(bundle: Bundle, infos: list[PlanInfo]) -> list[str]:
    """Return the trtexec and Polygraphy lines that build the same plans.

    They write beside the bundle, never into it: a plan that it lists must not change. Neither tool
    can make our plugins, so a plan with plugins gets a line that loads it instead.
    Sources: `trtexec --help` of 10.16, `tensorrt_rtx --help` of 1.7, `polygraphy convert --help`.
    """
    lines = []
    for info in infos:
        plan = f"{info.piece}-{info.arch}.plan"
        if info.route == "aot":
            lines.append(shlex.join(["trtexec", f"--loadEngine={bundle.root / plan_path(info)}"]))
        elif info.route != "ipluginv3":
            model = str(bundle.root / bundle.piece(info.piece).model)
            lines.append(shlex.join(_trtexec(info, model, plan)))
            lines.append(_polygraphy(info, model, plan))
    return lines


def _trtexec(info: PlanInfo, model: str, plan: str) -> list[str]:
    rtx = info.backend == "tensorrt-rtx"
    line = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={model}", f"--saveEngine={plan}"]
    line.append("--skipInference")
    # 11.x is always strongly typed and accepts the flag for compatibility with 10.x.
    line.append(f"--computeCapabilities={info.arch[3:]}" if rtx else "--stronglyTyped")
    for index, kind in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:{'x'.join(map(str, s[index]))}" for name, s in info.shapes.items()]
        if shapes:
            line.append(f"--{kind}Shapes={','.join(shapes)}")
    if not info.tf32:
        line.append("--noTF32")
    if info.workspace is not None:
        line.append(f"--memPoolSize=workspace:{info.workspace // _MIB}M")
    return line


def _polygraphy(info: PlanInfo, model: str, plan: str) -> str:
    line = ["polygraphy", "convert", model, "--strongly-typed", "-o", plan]
    for index, kind in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:[{','.join(map(str, s[index]))}]" for name, s in info.shapes.items()]
        if shapes:
            line += [f"--trt-{kind}-shapes", *shapes]
    if info.tf32:
        line.append("--tf32")
    if info.workspace is not None:
        line += ["--pool-limit", f"workspace:{info.workspace // _MIB}M"]
    if info.backend == "tensorrt":
        return shlex.join(line)
    target = ["--compute-capabilities", info.compute_capability]
    return f"POLYGRAPHY_USE_TENSORRT_RTX=1 {shlex.join(line + target)}"


def rebuild_command(bundle: Bundle, backend: EngineBackend, arch: str) -> str:
    """Return the command that rebuilds a target's plans."""
    root = shlex.quote(str(bundle.root))
    return f"uino-deploy build {root} --backend {backend} --arch {arch} --force"


def plans_of(bundle: Bundle) -> list[PlanInfo]:
    """Return a description of each of a bundle's plans.

    Raises:
        BundleError: a plan's side JSON describes none.
    """
    paths = [path for plans in bundle.manifest.plans.values() for path in plans.values()]
    hint = "build the plans again: uino-deploy build --force"
    return [_read_info(bundle, path.removesuffix(".plan"), hint) for path in paths]


def _read_info(bundle: Bundle, name: str, hint: str) -> PlanInfo:
    try:
        return decode_json(bundle.read(f"{name}.json"), PlanInfo)
    except DocumentError as error:
        raise BundleError(
            f"{bundle.root}: {name}.json does not describe a plan: {error}", hint
        ) from error


def load_plan(
    bundle: Bundle, piece: str, backend: EngineBackend, arch: str, version: str
) -> tuple[Path, PlanInfo]:
    """Find the plan of a piece for this machine.

    Args:
        bundle: an opened bundle, whose files are checked.
        piece: the piece's name.
        backend: the library that will run it.
        arch: the architecture of this machine's GPU.
        version: the library's version.

    Returns:
        The plan's path and its description.

    Raises:
        BundleError: the bundle has no such plan, the plan is for another GPU or library version,
            or the ONNX file or its weights changed since; the hint is the command that builds it.
    """
    hint = rebuild_command(bundle, backend, arch)
    name = f"{plan_folder(backend, arch)}/{piece}"
    if f"{name}.json" not in bundle.manifest.files:
        built = sorted(target for target, plans in bundle.manifest.plans.items() if plans)
        have = f"it has {', '.join(built)}" if built else "it has none"
        raise BundleError(f"{bundle.root} has no plan {name}: {have}", hint)
    info = _read_info(bundle, name, hint)
    wrong = _mismatch(bundle, info, piece, backend, arch, version)
    if wrong:
        raise BundleError(f"{bundle.root}: plan {name} {wrong}", hint)
    return bundle.path(f"{name}.plan"), info


def _mismatch(
    bundle: Bundle, info: PlanInfo, piece: str, backend: EngineBackend, arch: str, version: str
) -> str:
    """Return why the plan does not fit this machine and bundle; empty if it does."""
    if (info.piece, info.backend, info.arch) != (piece, backend, arch):
        return (
            f"is {info.piece} for {info.backend} on {info.arch}, "
            f"needed is {piece} for {backend} on {arch}"
        )
    if info.version != version:
        return f"was built by {backend} {info.version}; this machine has {version}"
    files = bundle.manifest.files
    plan = files.get(f"{plan_folder(backend, arch)}/{piece}.plan")
    if plan is None:
        return "is described by a JSON file and is not in the manifest"
    if info.plan_sha256 != plan.sha256:
        return "is not the one that its JSON file describes"
    for name, digest in info.sources.items():
        if name not in files or files[name].sha256 != digest:
            return f"was built from another {name} than the bundle's"
    return ""
