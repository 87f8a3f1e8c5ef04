"""A description of the machine and the sources that names no user, host or path."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from uino_deploy import __version__
from uino_deploy.benchmarks.record import Machine
from uino_deploy.dependencies import library_versions
from uino_deploy.runtime import nvml

_TIMEOUT = 20


def describe_machine(root: Path = Path("/")) -> Machine:
    """Return what the system reports about itself; tests pass another `root`."""
    gpus = nvml.gpus()
    frequency = root / "sys/devices/system/cpu/cpu0/cpufreq"
    limit = _read(frequency / "scaling_max_freq")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(root / "proc/cpuinfo"),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        memory=_memory(root / "proc/meminfo"),
        board=_read(root / "proc/device-tree/model"),
        governor=_read(frequency / "scaling_governor"),
        power_mode=_power_mode(),
        clock_limit_mhz=None if limit is None else int(limit) / 1000,
        gpus=[gpu.name for gpu in gpus],
        gpu_clocks=[gpu.clocks for gpu in gpus],
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the installed libraries."""
    ours = {"python": platform.python_version(), "uino-deploy": __version__}
    return ours | library_versions()


def commit(folder: Path | None = None) -> str | None:
    """Return the commit of the sources, followed by "+" if they were changed."""
    where = folder or Path(__file__).resolve().parent
    head = _run(["git", "rev-parse", "--short=12", "HEAD"], where)
    if head is None:
        return None
    # A wheel installed inside some checkout does not come from that checkout.
    if _run(["git", "ls-files", "--error-unmatch", Path(__file__).name], where) is None:
        return None
    changed = _run(["git", "status", "--porcelain", "--untracked-files=no"], where)
    return f"{head}+" if changed else head


def _processor(cpuinfo: Path) -> str:
    """Return the processor's name; kernels on Arm give only numbers."""
    lines = (_read(cpuinfo) or "").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    parts = ("model name", "Model", "CPU implementer", "CPU part")
    name = next((fields[part] for part in parts[:2] if part in fields), "")
    if not name or name.isdigit():
        name = " ".join(f"{part} {fields[part]}" for part in parts[2:] if part in fields)
    family = fields.get("cpu family")
    if family is not None:
        name += f" (family {family} model {fields.get('model', '?')})"
    return name or platform.processor() or platform.machine()


def _cores() -> int:
    return os.cpu_count() or 1


def _memory(meminfo: Path) -> int | None:
    for line in (_read(meminfo) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _power_mode() -> str | None:
    """Return a Jetson's power mode as nvpmodel reports it, such as "MAXN"."""
    if shutil.which("nvpmodel") is None:
        return None
    said = _run(["nvpmodel", "-q"], Path("/"))
    for line in (said or "").splitlines():
        if "Power Mode:" in line:
            return line.partition("Power Mode:")[2].strip()
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _run(command: list[str], folder: Path) -> str | None:
    """Return a command's output; None if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
