"""Type stubs of TensorRT, made from its own bindings, and what mypy says of our plugins by them.

The bindings come without types, and the published stubs (10.8 to 10.13 only) are not valid Python;
pybind11 writes signatures into docstrings, from which mypy's stubgen makes stubs of any version.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# What stubgen makes of a docstring and Python does not mean.
_REPAIRS = [
    # A second signature without arguments stands for "see the base class".
    (r"    @overload\n    def (\w+)\(self\) -> Any: \.\.\.\n", ""),
    # A parameter without a default after others with one.
    (r"(channel_axis: [\w.]+)\)", r"\1 = ...)"),
    # pybind11 converts between the two.
    (r"class PluginFieldCollection_:\n(    .*\n)*", ""),
    (r"\bFallbackString\b(?!:)", "str"),
    (r"\btyping\.SupportsInt\b", "int"),
    (r"\bdata: [\w.]*Buffer\b", "data: Any"),
    (r"(def get_plugin_registry)\(.*\n", r"\1() -> IPluginRegistry: ...\n"),
    # Iterated by __getitem__.
    (r"(class Dims:\n)", r"\1    def __iter__(self) -> Any: ...\n"),
]


def write_stubs(bindings: Path, libraries: Path, folder: Path) -> None:
    """Write stubs of the bindings in a folder as the packages tensorrt and tensorrt_bindings."""
    shutil.rmtree(folder, ignore_errors=True)
    program = "import sys; from mypy.stubgen import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "--inspect-mode", "--quiet"]
    command += ["--module", "tensorrt_bindings.tensorrt", "--output", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(libraries)}
    subprocess.run(command, env=environment, check=True)
    written = folder / "tensorrt_bindings" / "tensorrt.pyi"
    written.write_text(_repaired(written.read_text()))
    (folder / "tensorrt_bindings" / "__init__.pyi").touch()
    package = folder / "tensorrt"
    package.mkdir()
    (package / "__init__.pyi").write_text(
        "from tensorrt_bindings.tensorrt import *\n__version__: str\n"
    )
    plugin = bindings / "tensorrt_bindings" / "plugin"
    if plugin.is_dir():  # Python, with annotations of its own
        shutil.copytree(plugin, package / "plugin")
        for path in (package / "plugin").glob("_*.py"):  # a tuple of any length is meant
            text = re.sub(r"Tuple\[(Union\[[^\]]*\])\]", r"Tuple[\1, ...]", path.read_text())
            path.write_text(text)
        (package / "plugin" / "__init__.py").unlink()
        (package / "plugin" / "__init__.pyi").write_text(_public(plugin))


def _repaired(text: str) -> str:
    for pattern, replacement in _REPAIRS:
        text = re.sub(pattern, replacement, text)
    return _without_lone_overloads(text) + "\nPluginFieldCollection_ = PluginFieldCollection\n"


def _without_lone_overloads(text: str) -> str:
    """Drop `@overload` where one signature is left of a method."""
    signature = r"    @overload\n    def %s\(.*\n"
    signatures = re.compile("(" + signature % r"(\w+)" + "(?:" + signature % r"\2" + ")*)")

    def one(match: re.Match[str]) -> str:
        block = match[1]
        return block.replace("    @overload\n", "") if block.count("@overload") == 1 else block

    return signatures.sub(one, text)


def _public(plugin: Path) -> str:
    """Return the imports by which the module shows what its files mark as public."""
    lines = []
    for path in sorted(plugin.glob("_*.py")):
        names = re.findall(r"@public_api\(\)\n\s*(?:class|def) (\w+)", path.read_text())
        lines += [f"from tensorrt.plugin.{path.stem} import {name} as {name}\n" for name in names]
    return "".join(lines)


def check(folder: Path, cache: Path, modules: list[str], root: Path) -> bool:
    """Say whether mypy finds nothing wrong with modules of ours by these stubs."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
    for module in modules:
        command += ["-m", f"uino_deploy.kernels.plugins.{module}"]
    environment = os.environ | {"MYPYPATH": str(folder)}
    return not subprocess.run(command, env=environment, cwd=root, check=False).returncode
