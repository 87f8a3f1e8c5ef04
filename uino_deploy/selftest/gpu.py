"""Claims that need an NVIDIA GPU: the kernels, the plugins inside engines, every backend."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.plans import EngineBackend, PlanInfo, plan_folder, plans_of
from uino_deploy.bundle.reference import inputs_of, load_example
from uino_deploy.dependencies import is_importable
from uino_deploy.kernels.compiler.targets import capability_of, dtypes_of
from uino_deploy.kernels.plugins.library import OPERATORS, Launch, Library
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.pipeline import WHOLE
from uino_deploy.runtime.backends import BackendOptions, open_backend
from uino_deploy.runtime.cuda_memory import Device
from uino_deploy.runtime.session import Array, Backend
from uino_deploy.selftest.cases import (
    Case,
    cases_of,
    exact_on_gpu,
    listed,
    model_cases,
    ragged_cases,
    wide,
)
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured
from uino_deploy.selftest.operators import compare, judged
from uino_deploy.selftest.setting import Setting
from uino_deploy.tolerances import piece_tolerance, relative_l2

if TYPE_CHECKING:
    from uino_deploy.export.engines import Plugins

_PLUGIN_PIECE = "prompt"


def device_claims() -> list[Claim]:
    """Return the claim that a GPU is present; every other claim here depends on it."""
    return [Claim("a GPU is present and cuda-python reaches it", "a copy there and back", _device)]


def _device() -> Iterator[Measured]:
    device = Device()
    sent = np.random.default_rng(0).normal(size=(1 << 20)).astype(np.float32)
    yield Measured(float(np.abs(device.upload(sent).to_host() - sent).max()), "difference", 0)
    _, total = device.memory()
    yield Measured(total, "bytes", what="memory of the device")


def describe_device() -> dict[str, str]:
    """Return the GPU's name and architecture and the CUDA release of its driver.

    Raises:
        DependencyError: the GPU or cuda-python is missing.
    """
    device = Device()
    release = device.driver_release()
    return {"name": device.name, "architecture": device.architecture, "cuda": release}


# --- kernels


def kernel_claims(setting: Setting) -> list[Claim]:
    """Return the claims that the compiled kernels compute the operators on the GPU."""
    arch = setting.architecture
    return [
        Claim(
            f"the kernels compile for {arch or 'this GPU'}",
            "with Triton, for the model at hand; without a bundle for every preset",
            lambda: _compiled(setting),
        ),
        *(
            Claim(
                f"{operator.name}'s compiled kernel computes it",
                "the cubin launched through cuda-python at the model's shapes and at ragged ones, "
                "against float64",
                partial(_launched, setting, operator),
            )
            for operator in OPERATORS.values()
        ),
        *(
            Claim(
                f"{operator.name} in PyTorch launches its Triton kernel and computes it",
                "CUDA tensors at the model's shapes, against float64",
                partial(_in_torch, setting, operator),
            )
            for operator in OPERATORS.values()
        ),
    ]


def _compiled(setting: Setting) -> Iterator[Measured]:
    if not is_importable("triton"):
        raise CannotCheck("Triton is not installed")
    from uino_deploy.kernels.compiler.build import compile_models, write
    from uino_deploy.kernels.compiler.targets import PTX_ISA, oldest_cuda, target

    arch = setting.architecture
    release = setting.cuda if setting.cuda in PTX_ISA else oldest_cuda(arch)
    kernels = compile_models(target(arch, release), setting.configs())
    folder = setting.compiled(arch)
    folder.mkdir(parents=True)
    write(kernels, folder)
    yield Measured(len(kernels), "kernels", 1, at_least=True)
    spilled = sum(kernel.record["spill_bytes"] for kernel in kernels)
    yield Measured(spilled, "bytes", 0, what="spilled registers")


def _launched(setting: Setting, operator: Operator) -> Iterator[Measured]:
    arch = setting.architecture
    library = Library.open(setting.kernels_folder(arch), arch)
    device = Device()

    def run(launch: Launch, inputs: list[Array], like: list[Array]) -> list[Array]:
        return _launch(device, launch, inputs, like)

    cases = [*model_cases(setting.config()), *ragged_cases(setting.configs())]
    for case in cases_of(operator, cases):
        for dtype in dtypes_of(capability_of(arch)):
            yield compare(library, case, dtype, run, exact_on_gpu)


def _launch(device: Device, launch: Launch, inputs: list[Array], like: list[Array]) -> list[Array]:
    from uino_deploy.kernels.plugins import driver

    there = [device.upload(array) for array in inputs]
    # Unwritten outputs must fail: fill with NaN, also for bfloat16's bits.
    outputs = [
        device.upload(np.full(a.shape, 0xFFFF if a.dtype == np.uint16 else np.nan, a.dtype))
        for a in like
    ]
    function = driver.load(launch.kernel)
    given, taken = ([array.address for array in arrays] for arrays in (there, outputs))
    driver.run(function, launch, given, taken, device.stream)
    return [out.to_host() for out in outputs]


def _in_torch(setting: Setting, operator: Operator) -> Iterator[Measured]:
    if not is_importable("torch"):
        raise CannotCheck("torch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise CannotCheck("this torch has no CUDA")
    if not is_importable("triton"):
        raise CannotCheck("Triton is not installed")
    from uino_deploy import kernels

    function = getattr(kernels, operator.kernel)
    for case in cases_of(operator, model_cases(setting.config())):
        for dtype in dtypes_of(capability_of(setting.architecture)):
            yield _one_in_torch(function, case, dtype)


def _one_in_torch(function: Any, case: Case, dtype: str) -> Measured:
    import torch

    arrays = case.arrays(dtype)
    types = case.operator.types(dtype)
    tensors = [
        torch.from_numpy(wide(array)).to("cuda", getattr(torch, kind))
        for array, kind in zip(arrays.values(), types, strict=False)
    ]
    results = listed(function(*tensors, *case.attributes.values()))
    found = [result.double().cpu().numpy() for result in results]
    return judged(found, exact_on_gpu(case, arrays), dtype, case)


# --- engines


def engine_claims(setting: Setting, label: str, backend: EngineBackend) -> list[Claim]:
    """Return the claims about plans: they build, and plugins match the portable ONNX functions."""
    return [
        Claim(
            f"every piece is built for {setting.architecture or 'the GPU'}",
            "the bundle's plans if they fit, else built now; layers and types are read back "
            "from the engine",
            lambda: _built(setting, label, backend),
        ),
        Claim(
            "the plugins inside the engine match the portable ONNX functions",
            "the prompt piece's engine and one of the functions, on the reference's inputs",
            lambda: _plugins_match(setting, label, backend),
        ),
    ]


def planned(setting: Setting, label: str, backend: EngineBackend) -> Bundle:
    """Return the bundle, or a copy of it that this run built plans into.

    Raises:
        CannotCheck: the plans could not be built.
    """
    bundle = setting.open_bundle(label)
    if _complete(bundle, backend, setting.architecture):
        return bundle
    copy = _copy_of(setting, label, backend)
    if not copy.is_dir():
        raise CannotCheck(
            "there are no plans for this GPU; the first claim of the group of its plans says why"
        )
    return Bundle.open(copy, verify=False, require_signature=False)


def _complete(bundle: Bundle, backend: EngineBackend, arch: str) -> bool:
    folder = plan_folder(backend, arch)
    return all(f"{folder}/{name}.plan" in bundle.manifest.files for name in bundle.manifest.pieces)


def _copy_of(setting: Setting, label: str, what: str) -> Path:
    return Path(setting.scratch, f"{Path(label).stem}-{what}.uino")


def _built(setting: Setting, label: str, backend: EngineBackend) -> Iterator[Measured]:
    bundle = setting.open_bundle(label)
    if _complete(bundle, backend, setting.architecture):
        yield Measured(len(bundle.manifest.pieces), "plans in the bundle", 1, at_least=True)
        return
    plugins: Plugins = "auto"
    try:
        setting.kernels_folder(setting.architecture)
    except CannotCheck:  # the claim about plugins reports it; the rest is checked without them
        plugins = "none"
    for info in _build(setting, bundle, _copy_of(setting, label, backend), backend, plugins, ()):
        yield Measured(info.seconds, "s", what=f"{info.piece}, operators: {info.route}")


def _build(
    setting: Setting,
    bundle: Bundle,
    target: Path,
    backend: EngineBackend,
    plugins: Plugins,
    pieces: tuple[str, ...],
) -> list[PlanInfo]:
    """Build plans into a copy of a bundle; the copy exists only after success."""
    from uino_deploy.export.engines import RTX_ARCHITECTURES, build_engines

    arch = setting.architecture
    if backend == "tensorrt-rtx" and arch not in RTX_ARCHITECTURES:
        raise CannotCheck(f"TensorRT-RTX does not build for {arch}")
    kernels = setting.kernels_folder(arch) if plugins == "auto" else None
    making = target.with_name(f"making-{target.name}")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(bundle.root, making)
    infos = build_engines(
        Bundle.open(making, verify=False, require_signature=bundle.require_signature),
        backend,
        arch,
        pieces=pieces,
        plugins=plugins,
        kernels=kernels,
        force=True,
    )
    making.rename(target)
    return infos


def _plugins_match(setting: Setting, label: str, backend: EngineBackend) -> Iterator[Measured]:
    if backend == "tensorrt-rtx":
        raise CannotCheck(
            "TensorRT-RTX takes no plugins: its engines hold the portable ONNX functions"
        )
    bundle = planned(setting, label, backend)
    if bundle.config.prompt.hypercorrelation == "none":
        raise CannotCheck("this model's variant has none of our operators")
    own = (setting.architecture, backend, _PLUGIN_PIECE)
    info = next(i for i in plans_of(bundle) if (i.arch, i.backend, i.piece) == own)
    if not info.plugins:
        raise CannotCheck("the engine was built without plugins")
    yield Measured(sum(info.plugins.values()), "plugin layers", 1, at_least=True, what=info.route)
    functions = _copy_of(setting, label, "functions")
    _build(setting, setting.open_bundle(label), functions, backend, "none", (_PLUGIN_PIECE,))
    runner = open_backend(backend)
    found = _run_piece(bundle, runner)
    wanted = _run_piece(Bundle.open(functions, verify=False, require_signature=False), runner)
    for name, exact in wanted.items():
        allowed = piece_tolerance(info.precision).relative_l2
        error = relative_l2(wide(found[name]), exact.astype(np.float64))
        yield Measured(error, "relative L2", allowed, what=name)


def _run_piece(bundle: Bundle, backend: Backend) -> dict[str, npt.NDArray[Any]]:
    session = backend.load(bundle, _PLUGIN_PIECE)
    return session.run(inputs_of(session.piece, load_example(bundle)))


def graph_claim(setting: Setting, label: str, backend: EngineBackend) -> Claim:
    """Return the claim that replaying CUDA graphs does not change results."""
    return Claim(
        "CUDA graphs give the same results",
        "every piece recorded on other numbers, replayed on the reference's, against plain "
        "launches",
        lambda: _graphs(setting, label, backend),
    )


def _graphs(setting: Setting, label: str, backend: EngineBackend) -> Iterator[Measured]:
    bundle = planned(setting, label, backend)
    plain = open_backend(backend)
    replayed = open_backend(backend, BackendOptions(cuda_graphs=True))
    example = load_example(bundle)
    for name in bundle.manifest.pieces:
        if name == WHOLE:
            continue
        one, other = plain.load(bundle, name), replayed.load(bundle, name)
        feeds = inputs_of(one.piece, example)
        wanted = one.run(feeds)
        # Recorded on other numbers, so that a replay that computes nothing fails.
        other.run({key: array / 2 for key, array in feeds.items()})
        for output, found in other.run(feeds).items():
            error = relative_l2(wide(found), wanted[output].astype(np.float64))
            yield Measured(error, "relative L2", 1e-5, what=f"{name}.{output}")
