"""What a built engine says of itself: the JSON beside a plan, and its place in the bundle.

The plan itself is plain: trtexec and Triton Inference Server load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from uino_deploy.bundle import Bundle, Precision
from uino_deploy.errors import BundleError

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]


class PlanInfo(msgspec.Struct, kw_only=True):
    """The side JSON of one plan.

    Attributes:
        piece: the piece that was built.
        backend: which TensorRT built it.
        version: the library's version; another minor version refuses the plan.
        arch: compute capability, such as "sm_89".
        precision: of the piece's ONNX file.
        shapes: least, usual and largest shape of each input with dynamic dimensions.
        layers: number of network layers by float type, constants and casts left out.
        route: "function" where the operators' bodies were built in; "none" without operators.
        onnx_sha256: of the ONNX file that was built, so that a stale plan is noticed.
        plan_sha256: of the plan.
        built_by: the program.
    """

    piece: str
    backend: EngineBackend
    version: str
    arch: str
    precision: Precision
    shapes: dict[str, tuple[list[int], list[int], list[int]]]
    layers: dict[str, int]
    route: Literal["function", "none"]
    onnx_sha256: str
    plan_sha256: str
    built_by: str


def plan_folder(backend: EngineBackend, arch: str) -> str:
    """Return the folder of a target's plans, relative to the bundle."""
    return f"plans/{backend}-{arch}"


def plan_path(info: PlanInfo) -> str:
    """Return where a plan lies, relative to the bundle."""
    return f"{plan_folder(info.backend, info.arch)}/{info.piece}.plan"


def equivalent_commands(bundle: Bundle, infos: list[PlanInfo]) -> list[str]:
    """Return the trtexec and Polygraphy lines that build the same plans.

    They cannot target another GPU.
    """
    lines = []
    for info in infos:
        model, plan = bundle.root / bundle.piece(info.piece).model, bundle.root / plan_path(info)
        trtexec = "tensorrt_rtx" if info.backend == "tensorrt-rtx" else "trtexec --stronglyTyped"
        flags = [
            f"--{kind}Shapes=" + ",".join(f"{n}:{_by_x(s[i])}" for n, s in info.shapes.items())
            for i, kind in enumerate(("min", "opt", "max"))
        ]
        lines.append(f"{trtexec} --onnx={model} --saveEngine={plan} {' '.join(flags)}")
        if info.backend == "tensorrt":
            spelled = [
                f"--trt-{kind}-shapes "
                + " ".join(f"{n}:[{','.join(map(str, s[i]))}]" for n, s in info.shapes.items())
                for i, kind in enumerate(("min", "opt", "max"))
            ]
            lines.append(
                f"polygraphy convert {model} --strongly-typed -o {plan} {' '.join(spelled)}"
            )
    return lines


def _by_x(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def rebuild_command(bundle: Bundle, backend: EngineBackend, arch: str) -> str:
    """Return the command that makes a target's plans anew."""
    return f"uino-deploy build {bundle.root} --backend {backend} --arch {arch} --force"


def load_plan(
    bundle: Bundle, piece: str, backend: EngineBackend, arch: str, version: str
) -> tuple[Path, PlanInfo]:
    """Find the plan of a piece for this machine.

    Args:
        bundle: opened, so its files are those of the manifest.
        piece: the piece's name.
        backend: the library that shall run it.
        arch: compute capability of the GPU at hand.
        version: the library's version.

    Returns:
        The plan's path and what is known of it.

    Raises:
        BundleError: there is none, it is of another library version, or the ONNX file has changed
            since; the hint is the command that builds it.
    """
    hint = rebuild_command(bundle, backend, arch)
    name = f"{plan_folder(backend, arch)}/{piece}"
    if f"{name}.json" not in bundle.manifest.files:
        built = sorted(str(key) for key in bundle.manifest.plans)
        have = f"it has {', '.join(built)}" if built else "it has none"
        raise BundleError(f"{bundle.root} has no plan {name}: {have}", hint)
    info = msgspec.json.decode(bundle.path(f"{name}.json").read_bytes(), type=PlanInfo)
    if info.version != version:
        raise BundleError(
            f"{bundle.root}: plan {name} was built by {backend} {info.version}, here is {version}",
            hint,
        )
    onnx_file = bundle.manifest.files[bundle.piece(piece).model]
    if info.onnx_sha256 != onnx_file.sha256:
        raise BundleError(f"{bundle.root}: plan {name} was built from another ONNX file", hint)
    return bundle.path(f"{name}.plan"), info
