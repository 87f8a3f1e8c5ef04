"""Runs Triton's kernels in its interpreter: the switch must be set before they are decorated."""

import os

os.environ["TRITON_INTERPRET"] = "1"
