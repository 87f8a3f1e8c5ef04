"""The self-test: claims about the product that this machine can check.

Claims come in groups, and each group runs in its own process: a crash in one, or a GPU that
it left broken, fails only that group.
"""

from uino_deploy.selftest.findings import Finding
from uino_deploy.selftest.run import Report, run_selftest

__all__ = ["Finding", "Report", "run_selftest"]
