"""Checkpoints need PyTorch: without it, nothing here can be evaluated."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
