"""Packs a folder with everything that a machine with a card needs, which may have no network.

    python tests/gpu/wheelhouse.py build/gpu --arch sm_90      # for another machine
    python tests/gpu/wheelhouse.py build/gpu --here            # for this one

The folder holds the code without links, compiled kernels, variants to be timed, a small bundle and
wheels that the other machine lacks. Copy it there and run the command that this prints.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import sweep_kernels

from uino_deploy.export import export_bundle
from uino_deploy.kernels.compiler.build import compile_target, write
from uino_deploy.kernels.compiler.targets import target
from uino_deploy.model import load_checkpoint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT_MIB = 60
# Packages that the project imports and a machine with PyTorch may lack.
WHEELS = ("msgspec",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--arch", help="the card's architecture, such as sm_90")
    parser.add_argument(
        "--cuda", default="12.6", help="the oldest CUDA release that its driver may have"
    )
    parser.add_argument("--python", default="3.12", help="the Python version there")
    parser.add_argument("--here", action="store_true", help="pack for this machine's own card")
    parser.add_argument("--rehearse", action="store_true", help="add what a CPU can execute")
    arguments = parser.parse_args()
    if arguments.here == bool(arguments.arch):
        parser.error("name --arch, or --here")
    arch, out = arguments.arch or arch_here(), arguments.output
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pack_code(out)
    if not arguments.here:
        pack_wheels(out / "wheels", arguments.python)
    pack_kernels(out, arch, arguments.cuda, arguments.rehearse)
    checkpoint = ROOT / "uino_deploy/assets/tiny.safetensors"
    export_bundle(load_checkpoint(checkpoint), out / "tiny.uino")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) >> 20
    print(f"{out}: {size} MiB of at most {LIMIT_MIB}")
    if size > LIMIT_MIB:
        print("error: too large to carry", file=sys.stderr)
        return 1
    print("on the machine with the card, OUT naming a folder (at most 8 minutes):")
    print(f'cd {out} && python3 -B first_light.py --minutes 7 --out "$OUT"')
    return 0


def arch_here() -> str:
    """Return the architecture of this machine's first card, as the driver names it."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: nvidia-smi names no card: {error}; pass --arch to pack for another")
    return "sm_" + done.stdout.splitlines()[0].strip().replace(".", "")


def pack_code(out: Path) -> None:
    """Copy the checks and the package; links are replaced by copies of their targets."""
    for path in HERE.glob("*.py"):
        shutil.copy(path, out)
    shutil.copy(ROOT / "tests/runtime/fake_cuda.py", out)
    leave = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "uino_deploy", out / "site/uino_deploy", ignore=leave)
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (out / "COMMIT").write_text(done.stdout.strip() or "unknown")


def pack_wheels(out: Path, python: str) -> None:
    """Download wheels for the other machine's Python and unpack them, to save its time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
        command += ["--python-version", python, "-d", folder]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        command += [f"{name}=={version(name)}" for name in WHEELS]
        subprocess.run(command, check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as file:
                file.extractall(out)


def pack_kernels(out: Path, arch: str, cuda: str, rehearse: bool) -> None:
    """Compile the shipped kernels, the variants to be timed, and sm_80's for a rehearsal."""
    wanted = {"kernels": (arch, None)} | ({"k80": ("sm_80", ["tiny"])} if rehearse else {})
    for name, (built_for, presets) in wanted.items():
        (out / name).mkdir()
        write(compile_target(target(built_for, cuda), presets), out / name)
        print(f"compiled {name} for {built_for}", flush=True)
    sweep_kernels.compile_all(target(arch, cuda), out / "sweep")


if __name__ == "__main__":
    raise SystemExit(main())
