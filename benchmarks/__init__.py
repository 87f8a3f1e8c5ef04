"""Measurements of latency, memory and accuracy, reported together."""

if __name__ != "uino_deploy.benchmarks":
    raise ImportError(f"import this package as uino_deploy.benchmarks, not as {__name__}")
