"""Measurements of latency, memory and accuracy, reported together."""

from typing import TYPE_CHECKING, Any

if __name__ != "uino_deploy.benchmarks":
    raise ImportError(f"import this package as uino_deploy.benchmarks, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.benchmarks.bundles import benchmark_bundles as benchmark_bundles
    from uino_deploy.benchmarks.compare import compare_records as compare_records
    from uino_deploy.benchmarks.record import load_record as load_record

_MODULES = {
    "benchmark_bundles": "bundles",
    "compare_records": "compare",
    "load_record": "record",
}
__all__ = ["benchmark_bundles", "compare_records", "load_record"]


def __getattr__(name: str) -> Any:
    """Import on first use: a worker's process loads only what it runs."""
    if name not in _MODULES:
        raise AttributeError(f"module 'uino_deploy.benchmarks' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"uino_deploy.benchmarks.{_MODULES[name]}"), name)
