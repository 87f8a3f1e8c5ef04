"""Compiles, off the card, mamba-ssm's own forward kernel, to be timed beside ours.

Its sources are the sdist that the ledger counted, fetched from PyPI and held to the hash there;
where no nvcc is installed, it is fetched as well. Neither is part of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from uino_deploy import ptx
from uino_deploy.benchmarks.ledger import mamba
from uino_deploy.benchmarks.ledger.mamba import Kernel, compile_kernel
from uino_deploy.config import UinoConfig
from uino_deploy.errors import CheckFailed
from uino_deploy.kernels.compiler.shapes import scan_shapes

COUNTED = Path(mamba.__file__).with_name("mamba_ssm.json")
# The wheels for x86-64; elsewhere an installed nvcc is needed.
NVCC = {
    "nvidia-cuda-nvcc==13.0.88": "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
    "nvidia-nvvm==13.0.88": "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
    "nvidia-cuda-crt==13.0.88": "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    "nvidia-cuda-runtime==13.0.96": (
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"
    ),
    "nvidia-cuda-cccl==13.0.85": "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
}
# Reading the sdist's name makes pip run its setup.py, which would look for CUDA and for wheels.
SKIP = {"MAMBA_SKIP_CUDA_BUILD": "TRUE"}


def pack(out: Path, arch: str, preset: str, dtypes: Sequence[str]) -> None:
    """Write the kernels of a preset's scans to a new folder, or why there are none.

    Without them the step `mamba` is MISSING, and the run on the card cannot pass.
    """
    out.mkdir()
    try:
        with tempfile.TemporaryDirectory() as folder:
            sources = fetch_sources(Path(folder))
            provide_nvcc(Path(folder))
            lengths = {shape.length for shape in scan_shapes(UinoConfig.from_preset(preset))}
            wanted = {Kernel.for_length(length, dtype) for length in lengths for dtype in dtypes}
            for kernel in sorted(wanted, key=str):
                write(out, kernel, arch, sources)
            shutil.copy(sources / "LICENSE", out)
    except (CheckFailed, OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
        why = f"mamba-ssm's kernel was not compiled: {error}"
        (out / "missing.txt").write_text(why + "\n")
        print(f"warning: {why}; the step `mamba` will be MISSING", file=sys.stderr)


def fetch_sources(folder: Path) -> Path:
    """Download and unpack the sdist that the ledger counted; return its folder."""
    counted = json.loads(COUNTED.read_text())
    version = counted["source"].removeprefix("mamba_ssm-").removesuffix(".tar.gz")
    pinned = {f"mamba-ssm=={version}": counted["sha256"]}
    options = ["--no-build-isolation", "--no-binary", "mamba-ssm", "-d", str(folder)]
    pip("download", pinned, folder, options)
    with tarfile.open(folder / counted["source"]) as archive:
        archive.extractall(folder, filter="data")
    return folder / counted["source"].removesuffix(".tar.gz")


def provide_nvcc(folder: Path) -> None:
    """Put NVIDIA's wheels of nvcc on PATH where none is installed."""
    if shutil.which("nvcc") and shutil.which("ptxas"):
        return
    pip("install", NVCC, folder, ["--only-binary", ":all:", "--target", str(folder / "nvcc")])
    tools = folder / "nvcc/nvidia/cu13/bin"
    os.environ["PATH"] = os.pathsep.join([str(tools), os.environ["PATH"]])


def pip(verb: str, pinned: dict[str, str], folder: Path, options: list[str]) -> None:
    """Fetch packages whose hashes are given."""
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{p} --hash=sha256:{h}\n" for p, h in pinned.items()))
    command = [sys.executable, "-m", "pip", verb, "-qq", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "-r", str(requirements), *options]
    done = subprocess.run(
        command, env=os.environ | SKIP, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CheckFailed(f"pip {verb} {' '.join(pinned)}: {(said or ['failed'])[0]}")


def write(out: Path, kernel: Kernel, arch: str, sources: Path) -> None:
    """Compile one kernel; write its cubin, its PTX and its launch."""
    made = compile_kernel(kernel, sources, arch)
    even = "even" if kernel.even else "ragged"
    stem = out / f"mamba_ssm-t{kernel.threads}i{kernel.items}-{even}-{kernel.dtype}-{arch}"
    stem.with_suffix(".cubin").write_bytes(made.cubin)
    stem.with_suffix(".ptx").write_text(made.ptx)
    record = asdict(kernel) | {"entry": ptx.parse(made.ptx).name, "shared_bytes": made.shared_bytes}
    record |= {"registers": made.registers, "spill_bytes": made.spill_bytes}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(stem.name, made.registers, "registers", made.shared_bytes, "bytes shared", flush=True)
