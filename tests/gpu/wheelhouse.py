"""Packs a folder with everything that a machine with a card needs, which may have no network.

    python tests/gpu/wheelhouse.py build/gpu --arch sm_90      # for another machine
    python tests/gpu/wheelhouse.py build/gpu --here            # for this one

The folder holds the code without links, compiled kernels, variants to be timed, a small bundle and
wheels that the other machine lacks. Copy it there and run the command that this prints.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import mamba_kernels
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
DTYPES = ("float32", "float16", "bfloat16")
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
    parser.add_argument("--limit-mib", type=int, default=LIMIT_MIB, metavar="N",
                        help="the most that one load may have; more is split")  # fmt: skip
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
    try:
        loads = split(out, arguments.limit_mib << 20)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(instructions(out, loads)))
    return 0


def split(out: Path, limit: int) -> list[Path]:
    """Return what to carry in turn: the folder, or numbered archives beside it of `limit` bytes.

    Raises:
        ValueError: a file alone is larger than the limit; no archive was written.
    """
    for old in out.parent.glob(f"{out.name}-part*.tar"):
        old.unlink()
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) <= limit:
        return [out]
    loads: list[list[Path]] = [[]]
    room = usable = limit - tarfile.RECORDSIZE  # an archive's end is padded
    for path in files:
        # A header of 512 bytes, three for a long name, and whole blocks.
        needed = 4 * tarfile.BLOCKSIZE + -(-path.stat().st_size // 512) * 512
        if needed > usable:
            raise ValueError(f"{path} alone is larger than {limit >> 20} MiB: it cannot be carried")
        if needed > room:
            loads.append([])
            room = usable
        loads[-1].append(path)
        room -= needed
    parts = []
    for number, paths in enumerate(loads, 1):
        parts.append(out.with_name(f"{out.name}-part{number}.tar"))
        with tarfile.open(parts[-1], "w", format=tarfile.GNU_FORMAT) as archive:
            for path in paths:
                archive.add(path, path.relative_to(out.parent))
    return parts


def instructions(out: Path, loads: list[Path]) -> list[str]:
    """Return what to carry and to run there, load by load."""
    run = f'cd {shlex.quote(str(out))} && python3 -B first_light.py --out "$OUT"'
    if loads == [out]:
        return [f"carry {out}; there, OUT naming a folder (at most 10 minutes):", run]
    lines = [f"too large for one load; carry {len(loads)} archives, one after the other"]
    for number, part in enumerate(loads, 1):
        size = os.path.getsize(part) / (1 << 20)
        lines += [f"{number}. carry {part} ({size:.1f} MiB); there:"]
        lines += [f"tar -xf {shlex.quote(str(part))} -C {shlex.quote(str(out.parent))}"]
    return [*lines, "with all there, OUT naming a folder (at most 10 minutes):", run]


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
    mamba_kernels.pack(out / "mamba", arch, "vitb14", DTYPES)
    if rehearse:
        mamba_kernels.pack(out / "mamba80", "sm_80", "tiny", ["float16"])


if __name__ == "__main__":
    raise SystemExit(main())
