"""The choice of implementation: Triton for CUDA tensors, the specification otherwise."""

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

# float64 is for gradient checks: only the specification computes in it.
TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Result = TypeVar("Result")


def runs_on_triton(tensor: Tensor) -> bool:
    """Return whether an operator on this tensor launches its Triton kernel."""
    return tensor.is_cuda and tensor.dtype in TRITON_TYPES and find_spec("triton") is not None


def differentiable(
    operator: Callable[..., Result], specification: Callable[..., Result]
) -> Callable[..., Result]:
    """Return the operator, but in training without Triton its specification.

    Autograd then keeps what the operator's own backward would compute again. A traced graph always
    has the operator.
    """

    @wraps(specification)
    def run(first: Tensor, *rest: Any) -> Result:
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        chosen = specification if training and not runs_on_triton(first) else operator
        return chosen(first, *rest)

    return run
