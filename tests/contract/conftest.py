"""The contract tests run in separate environments: `make test-contract`."""

from importlib.util import find_spec

# Elsewhere there are no bindings to hold the code to.
collect_ignore_glob = [] if find_spec("tensorrt_bindings") else ["test_*.py"]
