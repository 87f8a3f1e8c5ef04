"""Detection of installed optional packages without importing them, and how to install them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from uino_deploy.errors import DependencyError

# A file that only Jetsons have; its first line names the JetPack release.
TEGRA_RELEASE = Path("/etc/nv_tegra_release")

# PyPI's TensorRT does not install on a Jetson: the bindings come with JetPack.
JETSON_TENSORRT = (
    "use JetPack's own: apt install python3-libnvinfer, make the environment with "
    "--system-site-packages, pip install cuda-python"
)

_LIBRARIES = (
    "numpy",
    "Pillow",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "triton",
)


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that results depend on."""
    versions = {name: installed_version(name) for name in _LIBRARIES}
    return {name: version for name, version in versions.items() if version is not None}


def installed_version(distribution: str) -> str | None:
    """Return a distribution's version from its metadata, or None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def is_importable(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it."""
    return find_spec(module) is not None


def install_command(extra: str) -> str:
    """Return the command that installs an extra; the project is not on PyPI.

    Without -e it would put a copy in the place of `make demo`'s editable install.
    """
    return f"pip install -e '.[{extra}]' in a checkout of uino-deploy"


def read_jetpack(release: Path) -> str | None:
    """Return the first line of a Jetson's release file; None on other machines."""
    try:
        lines = release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return lines[0].lstrip("# ") if lines else None


def require(extra: str, *modules: str) -> None:
    """Check that an extra's modules are installed before a command starts its work.

    Args:
        extra: the extra of this package that installs them, such as "export".
        modules: top-level module names.

    Raises:
        DependencyError: one is missing; the hint is the pip command.
    """
    missing = [module for module in modules if not is_importable(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DependencyError(
            f"{' and '.join(missing)} {verb} not installed",
            install_command(extra),
        )
