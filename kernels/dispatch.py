"""The choice of implementation: Triton for CUDA tensors, the specification otherwise."""

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined] # not in torch's __all__

# float64 is for gradient checks: only the specification computes in it.
TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Result = TypeVar("Result")


def runs_on_triton(tensor: Tensor) -> bool:
    """Return whether an operator on this tensor launches its Triton kernel."""
    return tensor.is_cuda and tensor.dtype in TRITON_TYPES and find_spec("triton") is not None


def differentiable(
    operator: CustomOpDef, specification: Callable[..., Result]
) -> Callable[..., Result]:
    """Give an operator its specification's gradient, and return it, to be called by position.

    What the specification computes on the way is computed again. In training without Triton the
    result calls the specification instead, so that autograd keeps it. A traced graph always has
    the operator.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.rest = inputs[len(tensors) :]
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            outputs: Any = specification(*inputs, *ctx.rest)
        return (*torch.autograd.grad(outputs, inputs, gradients), *(None for _ in ctx.rest))

    operator.register_autograd(backward, setup_context=setup_context)

    @wraps(specification)
    def run(first: Tensor, *rest: Any) -> Result:
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if training and not runs_on_triton(first):
            return specification(first, *rest)
        result: Result = operator(first, *rest)
        return result

    return run
