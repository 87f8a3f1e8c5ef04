"""Runs the contract tests against the Python bindings of each TensorRT that is supported.

    python -m tests.contract.environments [ENVIRONMENT ...]

Each environment is a separate search path over packages installed once, below build/contract;
nothing is seen of the environment that this runs in. Only TensorRT's bindings are installed (a
megabyte or two each): a stub written in C stands in for its libraries. Only `words-10.16` and
`words-11.4` also install those of the lean runtime, to look words up in them. Needed are a C
compiler and Python 3.11 or 3.12, for which all of these have wheels; no GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.contract.stubs import check, write_stubs

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "contract"
BUILD = ROOT / "build" / "contract"

# What the tests themselves need; `msgspec` is what the modules under test need, as old as allowed.
TOOLS = ["pytest==8.4.2", "pluggy==1.6.0", "iniconfig==2.1.0", "packaging==25.0", "msgspec==0.18.6"]
TOOLS += ["pygments==2.19.2", "tomli==2.2.1", "exceptiongroup==1.3.0", "typing_extensions==4.15.0"]
# Whose bindings the plugins are type-checked against: the modules that are imported there.
TYPED = {
    "10.3": ["dtypes", "ipluginv3"],
    "10.9": ["aot", "dtypes", "ipluginv3"],
    "11.4": ["aot", "dtypes", "ipluginv3"],
}


@dataclass(frozen=True)
class Environment:
    """A TensorRT, a NumPy and a cuda-python that meet on some device."""

    bindings: str
    numpy: str
    cuda: str = "cuda-bindings==12.9.2"
    libraries: str = ""  # 42 MiB: only where the environment is asked for by name

    @property
    def major(self) -> str:
        """TensorRT's major version, which its libraries carry in their names."""
        return self.bindings.partition("==")[2].partition(".")[0]


_CUDA_13 = "cuda-bindings==13.5.0"
ENVIRONMENTS = {
    # JetPack 6.2, and what becomes of it where NumPy 2 is installed beside it.
    "10.3": Environment("tensorrt_cu12_bindings==10.3.0", "numpy==1.26.4"),
    "10.3-numpy2": Environment("tensorrt_cu12_bindings==10.3.0", "numpy==2.3.5"),
    "10.9": Environment("tensorrt_cu12_bindings==10.9.0.34", "numpy==1.26.4"),
    "10.9-numpy2": Environment("tensorrt_cu12_bindings==10.9.0.34", "numpy==2.3.5"),
    "10.9-numpy2.4": Environment("tensorrt_cu12_bindings==10.9.0.34", "numpy==2.4.6"),
    "10.13": Environment("tensorrt_cu12_bindings==10.13.3.9", "numpy==1.26.4"),
    "10.16": Environment("tensorrt_cu12_bindings==10.16.1.11", "numpy==2.3.5"),
    "11.4": Environment("tensorrt_cu13_bindings==11.4.0.106", "numpy==2.4.6", _CUDA_13),
    "words-10.16": Environment(
        "tensorrt_cu12_bindings==10.16.1.11",
        "numpy==2.3.5",
        libraries="tensorrt-lean-cu13-libs==10.16.1.11",
    ),
    "words-11.4": Environment(
        "tensorrt_cu13_bindings==11.4.0.106",
        "numpy==2.4.6",
        _CUDA_13,
        libraries="tensorrt-lean-cu13-libs==11.4.0.106",
    ),
}


def main(names: list[str]) -> int:
    """Prepare and run the named environments, or all small ones; return the exit code."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        _say("FAILED: needs Python 3.11 or 3.12, for which all these versions have wheels")
        return 1
    failed = []
    tools = installed("tools", *TOOLS)
    for name in names or [name for name, each in ENVIRONMENTS.items() if not each.libraries]:
        environment = ENVIRONMENTS[name]
        path = [tools, *(installed(p, p) for p in _packages(environment)), ROOT]
        path.insert(0, _frontend(environment))
        _say(f"TensorRT {name}")
        if _run(path, stub(environment.major)):
            failed.append(name)
        if name in TYPED and _badly_typed(name, environment):
            failed.append(f"types of {name}")
    _say(f"FAILED: {', '.join(failed)}" if failed else "PASSED")
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stdout.write(f"contract: {line}\n")
    sys.stdout.flush()


def _packages(environment: Environment) -> list[str]:
    found = [environment.bindings, environment.numpy, environment.cuda, "cuda-pathfinder==1.9.0"]
    return [*found, *filter(None, [environment.libraries])]


def installed(name: str, *requirements: str) -> Path:
    """Return a folder that holds exactly these packages, installing them the first time."""
    target = BUILD / "packages" / name
    if not target.exists():
        temporary = target.with_name(f".{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-compile", "--only-binary", ":all:", "--target", str(temporary)]
        subprocess.run([*pip, *requirements], check=True)
        temporary.rename(target)
    return target


def _frontend(environment: Environment) -> Path:
    """Return a folder with the package `tensorrt`, laid over the bindings as NVIDIA's own is."""
    target = BUILD / "packages" / f"frontend-{environment.bindings}"
    if not target.exists():
        bindings = installed(environment.bindings, environment.bindings) / "tensorrt_bindings"
        temporary = target.with_name(f".{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        package = temporary / "tensorrt"
        package.mkdir(parents=True)
        text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
        (package / "__init__.py").write_text(text)
        if (bindings / "plugin").is_dir():
            shutil.copytree(bindings / "plugin", package / "plugin")
        temporary.rename(target)
    return target


def stub(major: str) -> Path:
    """Return a folder with the stand-ins for one TensorRT's libraries and for CUDA's driver."""
    target = BUILD / "stub" / major
    target.mkdir(parents=True, exist_ok=True)
    libraries = {f"lib{name}.so.{major}": "tensorrt_stub.c" for name in _LIBRARIES}
    for library, source in (libraries | {"libcuda.so.1": "cuda_stub.c"}).items():
        built, text = target / library, HERE / source
        if not built.exists() or built.stat().st_mtime < text.stat().st_mtime:
            command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
            command += [f"-Wl,-soname,{library}", str(text), "-o", str(built)]
            subprocess.run(command, check=True)
    return target


_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def _run(path: list[Path], libraries: Path) -> int:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    environment["LD_LIBRARY_PATH"] = str(libraries)
    # -S: no site-packages, neither this environment's nor the user's.
    command = [sys.executable, "-S", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # The bindings themselves warn.
    command += ["-m", "contract", "-o", "filterwarnings=ignore::DeprecationWarning", str(HERE)]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def _badly_typed(name: str, environment: Environment) -> bool:
    """Say whether mypy objects to the plugins, by stubs made from an environment's bindings."""
    folder = BUILD / "types" / name
    bindings = installed(environment.bindings, environment.bindings)
    write_stubs(bindings, stub(environment.major), folder)
    return not check(folder, BUILD / "mypy" / name, TYPED[name], ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
