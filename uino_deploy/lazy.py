"""Public names of a package that are imported on first use, so that importing it loads little."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def on_first_use(package: str, *public: str) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        public: the names, each after its module below the package: "exporter.export_bundle".
    """
    modules = {name: module for module, _, name in (path.rpartition(".") for path in public)}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
