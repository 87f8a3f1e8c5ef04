"""Measurements of latency, memory and accuracy, reported together."""

from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

if __name__ != "uino_deploy.benchmarks":
    raise ImportError(f"import this package as uino_deploy.benchmarks, not as {__name__}")

if TYPE_CHECKING:
    from uino_deploy.benchmarks.bundles import benchmark_bundles as benchmark_bundles
    from uino_deploy.benchmarks.compare import compare_records as compare_records
    from uino_deploy.benchmarks.record import load_record as load_record

__all__ = ["benchmark_bundles", "compare_records", "load_record"]

# A worker's process loads only what it runs.
__getattr__ = on_first_use(
    __name__, "bundles.benchmark_bundles", "compare.compare_records", "record.load_record"
)
