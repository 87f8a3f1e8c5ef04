"""Imports point one way, down the order of `ALLOWED`; commands and tests keep to public modules."""

import ast
from pathlib import Path

import pytest

from uino_deploy.markdown import renew, rewrite, table

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "uino_deploy"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"

# What the base installation can import; it knows nothing of what lies above it.
LEAVES = {
    "__init__",
    "assets",
    "bundle",
    "charts",
    "child",
    "config",
    "dependencies",
    "documents",
    "errors",
    "files",
    "images",
    "inputs",
    "lazy",
    "letters",
    "markdown",
    "miscompiles",
    "page",
    "painting",
    "pipeline",
    "progress",
    "sbom",
    "tolerances",
    "workspace",
}

# Component -> what it may import beside itself. The order is the order of the layers.
ALLOWED = {
    **dict.fromkeys(LEAVES, LEAVES),
    "kernels": LEAVES,
    "ptx": LEAVES,
    "model": LEAVES | {"kernels"},
    "data": LEAVES,
    "runtime": LEAVES | {"kernels"},
    "serving": LEAVES | {"runtime"},
    "evaluation": LEAVES | {"model", "data", "runtime"},
    "training": LEAVES | {"model", "data", "evaluation"},
    "doctor": LEAVES | {"kernels", "runtime"},
    "export": LEAVES | {"kernels", "model", "data", "runtime"},
    "selftest": LEAVES | {"kernels", "ptx", "model", "runtime", "export"},
    "inspection": LEAVES | {"model"},
    "benchmarks": LEAVES | {"kernels", "ptx", "model", "data", "evaluation", "runtime", "export"},
    "studies": LEAVES | {"model", "data", "evaluation", "training"},
    "demo": LEAVES | {"model", "data", "evaluation", "runtime", "export"},
}
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__main__"] = {"cli"}

# Real folders at the top; links in the package lead to them.
TOP = {"benchmarks", "export", "kernels"}

# May be imported only inside functions there, so that a device without them runs a bundle.
HEAVY = {"onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "torch", "triton"}
TORCH_FREE = LEAVES | {
    "cli",
    "doctor",
    "data",
    "evaluation",
    "inspection",
    "ptx",
    "runtime",
    "selftest",
    "serving",
    "studies",
}


def components() -> list[str]:
    """Return the names directly under the package: modules, folders and links."""
    return sorted(
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    )


def sources(component: str) -> list[Path]:
    """Return a component's Python files."""
    folder = PACKAGE / component
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{component}.py"]


def imported(node: ast.AST) -> list[str]:
    """Return the full names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        if node.module == "uino_deploy":
            return [f"uino_deploy.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def own_imports(tree: ast.AST) -> set[str]:
    """Return the components of ours that a file imports, anywhere in it."""
    names = {name for node in ast.walk(tree) for name in imported(node)}
    parts = [name.split(".") for name in names]
    known = set(components())
    # `from uino_deploy import __version__` or a public name is the package itself.
    return {
        part[1] if len(part) > 1 and part[1] in known else "__init__"
        for part in parts
        if part[0] == "uino_deploy"
    }


def module_level(tree: ast.Module) -> list[ast.AST]:
    """Return the statements that run on import: all but functions' bodies and TYPE_CHECKING."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        found.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def test_every_component_has_a_layer():
    assert set(components()) <= set(ALLOWED)


@pytest.mark.parametrize("component", components())
def test_imports_point_downward(component):
    allowed = ALLOWED[component] | {component}
    if component == "__init__":  # the public names, imported on first use
        allowed = allowed | {"model"}
    for path in sources(component):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        upward = own_imports(tree) - allowed
        assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}"


def test_a_layer_imports_only_layers_declared_before_it():
    order = list(ALLOWED)
    for place, name in enumerate(order):
        if name not in LEAVES:
            assert ALLOWED[name] <= set(order[:place]) | {name}, name


@pytest.mark.parametrize("path", sources("cli"), ids=lambda path: path.stem)
def test_no_command_imports_another(path):
    """What commands share is in `cli/_*.py`; the group finds the commands by their names."""
    commands = {f"uino_deploy.cli.{file.stem}" for file in sources("cli") if file.stem[0] != "_"}
    assert not cli_imports(path) & commands


def test_tests_import_no_private_module_of_the_command_line():
    shared = ROOT / "tests/test_cli.py"  # it tests what the commands share
    for path in sorted(set((ROOT / "tests").rglob("*.py")) - {shared}):
        private = {name for name in cli_imports(path) if name.startswith("uino_deploy.cli._")}
        assert not private, f"{path.relative_to(ROOT)} imports {sorted(private)}"


def cli_imports(path: Path) -> set[str]:
    """Return the full names of the command line's modules that a file may import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names |= set(imported(node))
        if isinstance(node, ast.ImportFrom) and node.module == "uino_deploy.cli":
            names |= {f"uino_deploy.cli.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("uino_deploy.cli")}


@pytest.mark.parametrize("component", sorted(TORCH_FREE & set(components())))
def test_heavy_packages_are_imported_inside_functions(component):
    for path in sources(component):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.split(".")[0] for node in module_level(tree) for name in imported(node)}
        assert not names & HEAVY, f"{path.relative_to(ROOT)} imports {sorted(names & HEAVY)}"


def test_runtime_and_leaves_never_import_torch_or_onnx_models():
    # Inside functions either.
    for component in sorted((LEAVES | {"runtime"}) & set(components())):
        for path in sources(component):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {name.split(".")[0] for node in ast.walk(tree) for name in imported(node)}
            assert not names & {"torch", "triton", "onnx", "onnxscript"}, path


def test_imports_are_absolute():
    for component in components():
        for path in sources(component):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_an_upward_import_would_be_found():
    tree = ast.parse("def f():\n    from uino_deploy.export.bundle import x\n")
    assert own_imports(tree) == {"export"}
    assert own_imports(ast.parse("from uino_deploy import cli, __version__")) == {
        "cli",
        "__init__",
    }
    lazy = ast.parse("if TYPE_CHECKING:\n    import torch\ndef f():\n    import onnx\nimport numpy")
    assert [name for node in module_level(lazy) for name in imported(node)] == ["numpy"]


def rooms_table() -> str:
    """Return CONTRIBUTING's table: each room, its docstring's first line, what it may import."""
    rooms = [name for name in components() if not name.startswith("_")]
    layers = [name for name in reversed(ALLOWED) if name in rooms and name not in LEAVES]
    rows = []
    for name in [*layers, *sorted(LEAVES & set(rooms))]:
        folder = (PACKAGE / name).is_dir()
        path = PACKAGE / name / "__init__.py" if folder else PACKAGE / f"{name}.py"
        what = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]
        room = name if name in TOP else f"uino_deploy/{name}"
        imports = ", ".join(f"`{each}`" for each in layers if each in ALLOWED[name]) or "leaves"
        shown = "leaf" if name in LEAVES else "everything" if name == "cli" else imports
        rows.append([f"`{room}/`" if folder else f"`{room}.py`", what.rstrip("."), shown])
    return table(["room", "what it holds", "may import"], rows)


def test_the_table_of_rooms_is_current():
    """Update it with: python -m tests.test_layers."""
    page = CONTRIBUTING.read_text("utf-8")
    assert renew(page, "rooms", rooms_table()) == page


if __name__ == "__main__":
    rewrite(CONTRIBUTING, lambda page: renew(page, "rooms", rooms_table()))
