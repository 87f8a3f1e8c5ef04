"""The model needs PyTorch: without it, nothing here can be tested."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
