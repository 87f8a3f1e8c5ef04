"""The choice of implementation: Triton for CUDA tensors, the native library for CPU tensors.

Everything else, and what must not depend on either, goes to the specification.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined] # not in torch's __all__

from uino_deploy.kernels.native import Native, loaded

# float64 is for gradient checks: only the specification computes in it.
KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Result = TypeVar("Result")

_specified: ContextVar[bool] = ContextVar("_specified", default=False)


def runs_on_triton(tensor: Tensor) -> bool:
    """Return whether an operator on this tensor launches its Triton kernel."""
    return tensor.is_cuda and tensor.dtype in KERNEL_TYPES and find_spec("triton") is not None


@contextmanager
def specified() -> Iterator[None]:
    """Compute CPU tensors by the specification: a reference must not share the code it judges."""
    token = _specified.set(True)
    try:
        yield
    finally:
        _specified.reset(token)


def native_for(tensor: Tensor) -> Native | None:
    """Return the native library if it computes an operator on this tensor."""
    if tensor.device.type != "cpu" or tensor.dtype not in KERNEL_TYPES or _specified.get():
        return None
    return loaded()


def native_type(tensor: Tensor) -> str:
    """Return the native library's name of a tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")


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
