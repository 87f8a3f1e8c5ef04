"""The state of this machine: what is installed, what runs here, and how to fix the rest.

Nothing heavy is imported: versions come from package metadata, so it can also diagnose a broken
torch or TensorRT. Only onnxruntime is imported, in child processes, to list its providers.
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any

from uino_deploy import __version__
from uino_deploy.child import Child, ChildFailed, Note
from uino_deploy.dependencies import (
    JETSON_TENSORRT,
    TEGRA_RELEASE,
    install_command,
    installed_version,
    read_jetpack,
)
from uino_deploy.kernels import native
from uino_deploy.miscompiles import known_miscompiles

# Distributions whose versions the report states; several names if a package has several.
PACKAGES = {
    "numpy": ("numpy",),
    "Pillow": ("pillow",),
    "msgspec": ("msgspec",),
    "safetensors": ("safetensors",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
    "onnxruntime-ep-openvino": ("onnxruntime-ep-openvino",),
    "onnxruntime-ep-nv-tensorrt-rtx": (
        "onnxruntime-ep-nv-tensorrt-rtx-cu12",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    ),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    "cuda-python": ("cuda-python", "cuda-bindings"),
    "torch": ("torch",),
    "triton": ("triton",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "mamba-ssm": ("mamba-ssm",),
    "scikit-learn": ("scikit-learn",),
    "scikit-image": ("scikit-image",),
    "pycocotools": ("pycocotools",),
    "cryptography": ("cryptography",),
    "starlette": ("starlette",),
    "uvicorn": ("uvicorn",),
    "python-multipart": ("python-multipart",),
    "prometheus-client": ("prometheus-client",),
    "jinja2": ("jinja2",),
    "matplotlib": ("matplotlib",),
}

# Backend of the runtime -> the packages it needs and the extra that installs them.
BACKENDS = {
    "onnxruntime": (("onnxruntime",), "cpu"),
    "openvino": (("openvino",), "openvino"),
    "tensorrt": (("tensorrt", "cuda-python"), "tensorrt"),
    "tensorrt-rtx": (("tensorrt-rtx", "cuda-python"), "tensorrt-rtx"),
    "torch": (("torch",), "export"),
}

# Extra that single commands and options need -> its packages, and what it is for.
EXTRAS = {
    "train": (("torch", "scikit-learn", "jinja2", "matplotlib"), "train, distill"),
    "instances": (("scikit-image",), "predict --instances, evaluate --instances"),
    "signing": (("cryptography",), "sign, --require-signature"),
    "serve": (
        ("starlette", "uvicorn", "python-multipart", "prometheus-client", "scikit-image"),
        "serve",
    ),
    "coco": (("pycocotools",), "--dataset coco"),
    "pages": (("jinja2", "matplotlib"), "reports and charts"),
}

# Backends that cannot run a model without an NVIDIA GPU and its driver.
NEEDS_GPU = ("tensorrt", "tensorrt-rtx")

# Jobs of `uino_deploy.child`, and seconds that a native library may take to load and to answer.
_PROVIDERS = "uino_deploy.doctor:list_providers"
_PROBE = "uino_deploy.doctor:probe_providers"
_SECONDS = 120.0


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend would run on this machine, and what to do if not."""

    runs: bool
    advice: str = ""


@dataclass(frozen=True)
class ExtraStatus:
    """What an extra is for, and the command that installs it, "" if it is installed."""

    purpose: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The report of `doctor`.

    Attributes:
        packages: name -> version, None if it is not installed.
        providers: ONNX Runtime's execution providers, best first.
        provider_advice: provider of `--provider` -> "" if it is available (it may still
            fail to start, which shows with a model), else what is missing.
        gpu: "NAME, compute capability X.Y, driver Z" from nvidia-smi, None without one.
        jetpack: the first line of the board's release file, None off a Jetson.
        kernels: the implementation of the operators that PyTorch would use.
        native: the native operators' instruction sets here, best first; empty if they do not run.
        backends: the runtime's backends by name.
        extras: the extras that single commands and options need, by name.
        warnings: known miscompiles and slow code of installed compilers, by name.
        problems: broken installations and how to fix them; any of these makes `doctor` fail.
    """

    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    providers: list[str]
    provider_advice: dict[str, str]
    gpu: str | None
    jetpack: str | None
    kernels: str
    native: list[str]
    backends: dict[str, BackendStatus]
    extras: dict[str, ExtraStatus]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Examine this machine, in some seconds: it queries ONNX Runtime and nvidia-smi."""
    packages = {name: _first_version(names) for name, names in PACKAGES.items()}
    providers, provider_problem = _providers(packages)
    library = native.load()
    gpu = _nvidia_gpu()
    jetpack = read_jetpack(TEGRA_RELEASE)
    problems = find_conflicts(packages)
    if provider_problem:
        problems.append(provider_problem)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        providers=providers,
        provider_advice=_probe_providers() if providers else {},
        gpu=gpu,
        jetpack=jetpack,
        kernels=_kernel_dispatch(packages, gpu, library),
        native=library.forms if isinstance(library, native.Native) else [],
        backends=judge_backends(packages, providers, gpu, jetpack),
        extras=judge_extras(packages),
        problems=problems,
        warnings=[*find_warnings(packages, gpu), *_native_warnings(library)],
    )


def find_conflicts(packages: dict[str, str | None]) -> list[str]:
    """Return the combinations of versions that are known to fail or to give wrong results.

    Args:
        packages: name -> version as in `Diagnosis.packages`.
    """
    problems = []
    if packages.get("onnxruntime") and packages.get("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )
    numpy, tensorrt = packages.get("numpy"), packages.get("tensorrt")
    if numpy and tensorrt:
        found, bindings = _numbers(numpy), _numbers(tensorrt)
        if found >= (2,) and bindings < (10, 14):
            problems.append(
                f"NumPy {numpy} with TensorRT {tensorrt}: the bindings up to 10.13 silently "
                "corrupt arrays under NumPy 2; pip install 'numpy<2'"
            )
        elif found >= (2, 4) and bindings < (11, 2, 1):
            problems.append(
                f"NumPy {numpy} with TensorRT {tensorrt}: plugin attributes fail under NumPy 2.4 "
                "before TensorRT 11.2.1; pip install 'numpy<2.4'"
            )
    return problems


def find_warnings(packages: dict[str, str | None], gpu: str | None) -> list[str]:
    """Return known faults of the installed compilers: miscompiles by name, and slow code.

    Args:
        packages: name -> version as in `Diagnosis.packages`.
        gpu: as in `Diagnosis.gpu`; without one, faults of one architecture are left out.
    """
    capability = re.search(r"compute capability (\d+)\.(\d+)", gpu or "")
    arch = f"sm_{capability[1]}{capability[2]}" if capability else None
    warnings = [
        f"known miscompile {each.warning}"
        for compiler in ("tensorrt", "triton")
        for each in known_miscompiles(compiler, packages.get(compiler) or "0", arch)
    ]
    triton = packages.get("triton")
    if triton and _numbers(triton) < (3, 7):
        warnings.append(
            f"slow kernels: Triton {triton} compiles the parallel scan into correct but slow code "
            "(0.100 ms by 3.6 against 0.069 by 3.9 for 49x37x37x32 in float16 on an H200); torch "
            "2.9 to 2.11 pin it, torch 2.12 and newer bring 3.7 or newer"
        )
    return warnings


def judge_backends(
    packages: dict[str, str | None], providers: list[str], gpu: str | None, jetpack: str | None
) -> dict[str, BackendStatus]:
    """Return, for every backend, whether it would run on this machine, or what to do.

    Args:
        packages: name -> version as in `Diagnosis.packages`.
        providers: ONNX Runtime's execution providers; empty when it cannot be imported.
        gpu: a description of the NVIDIA GPU, None without one.
        jetpack: the board's release line, None off a Jetson.
    """
    packages = dict(packages)
    # onnxruntime-gpu is onnxruntime under another name.
    packages["onnxruntime"] = packages.get("onnxruntime") or packages.get("onnxruntime-gpu")
    statuses = {}
    for name, (needed, extra) in BACKENDS.items():
        missing = [package for package in needed if not packages.get(package)]
        if missing and jetpack and name == "tensorrt":
            advice = JETSON_TENSORRT
        elif missing:
            advice = install_command(extra)
        elif name in NEEDS_GPU and gpu is None:
            advice = "needs an NVIDIA GPU and its driver; nvidia-smi does not find one"
        elif name == "onnxruntime" and not providers:
            advice = "onnxruntime is installed but cannot be imported; see the problem below"
        else:
            advice = ""
        statuses[name] = BackendStatus(runs=not advice, advice=advice)
    return statuses


def judge_extras(packages: dict[str, str | None]) -> dict[str, ExtraStatus]:
    """Return, for every extra of single commands and options, how to install what it lacks.

    Args:
        packages: name -> version as in `Diagnosis.packages`.
    """
    return {
        extra: ExtraStatus(purpose, "" if _has(packages, needed) else install_command(extra))
        for extra, (needed, purpose) in EXTRAS.items()
    }


def _has(packages: dict[str, str | None], needed: tuple[str, ...]) -> bool:
    return all(packages.get(package) for package in needed)


def _first_version(names: tuple[str, ...]) -> str | None:
    return next((version for name in names if (version := installed_version(name))), None)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: "10.13.3.9" is (10, 13, 3, 9), "2.4rc1" is (2, 4)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _providers(packages: dict[str, str | None]) -> tuple[list[str], str]:
    """Ask ONNX Runtime for its providers; return them and a problem ("" when there is none)."""
    if not (packages["onnxruntime"] or packages["onnxruntime-gpu"]):
        return [], ""
    try:
        return list(_ask(_PROVIDERS)), ""
    except ChildFailed as error:
        return [], f"onnxruntime cannot be imported: its process {error}; reinstall it"


def _probe_providers() -> dict[str, str]:
    """Return what each provider lacks, see `probe_providers`, or why the child process failed."""
    try:
        return dict(_ask(_PROBE))
    except ChildFailed as error:
        return {"(all)": f"cannot be asked: its process {error}"}


def _ask(job: str) -> Any:
    """Run a job in a child process: a broken binary can abort the interpreter."""
    with Child(job) as child:
        return child.ask(None, seconds=_SECONDS)


def list_providers(_request: None, _note: Note) -> list[str]:
    """Return ONNX Runtime's execution providers, best first; a child's job."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def probe_providers(_request: None, _note: Note) -> dict[str, str]:
    """Return what each provider lacks, "" if it is available; a child's job."""
    import onnxruntime

    from uino_deploy.runtime.onnxruntime_providers import probe

    return probe(onnxruntime)


def _nvidia_gpu() -> str | None:
    """Describe the first NVIDIA GPU; None if nvidia-smi is missing or finds none."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return _tegra_gpu()
    parts = [part.strip() for part in answer.stdout.partition("\n")[0].split(",")]
    if answer.returncode or len(parts) != 3:
        return _tegra_gpu()
    return f"{parts[0]}, compute capability {parts[1]}, driver {parts[2]}"


def _tegra_gpu() -> str | None:
    """Detect a Jetson's integrated GPU without nvidia-smi, which JetPack 5 lacks."""
    return "Jetson integrated GPU" if TEGRA_RELEASE.exists() else None


def _kernel_dispatch(
    packages: dict[str, str | None], gpu: str | None, library: native.Native | str
) -> str:
    """Describe the implementation of the operators that PyTorch would use."""
    if not packages["torch"]:
        return "none: torch is not installed (the runtime does not need it)"
    on_cpu = "native" if isinstance(library, native.Native) else "the reference"
    if gpu and packages["triton"]:
        return f"Triton on CUDA tensors, {on_cpu} on CPU tensors"
    return f"{on_cpu} on CPU tensors" + ("" if packages["triton"] else " (no triton)")


def _native_warnings(library: native.Native | str) -> list[str]:
    return [] if isinstance(library, native.Native) else [native.warning(library)]
