"""The choice of implementation: Triton for CUDA tensors, the specification otherwise."""

from importlib.util import find_spec

import torch
from torch import Tensor

# float64 is for gradient checks: only the specification computes in it.
TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def runs_on_triton(tensor: Tensor) -> bool:
    """Return whether an operator on this tensor launches its Triton kernel."""
    return tensor.is_cuda and tensor.dtype in TRITON_TYPES and find_spec("triton") is not None
