"""A count of PyTorch's operators that touch memory: how many run, and the bytes they move."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VIEWS = {
    *("view", "_unsafe_view", "expand", "unsqueeze", "squeeze", "transpose", "t", "permute"),
    *("reshape", "detach", "slice", "select", "unbind", "alias", "as_strided", "split"),
}


class OperatorCount(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's has no types
    """A mode that records every operator that touches memory: a launch, on a GPU.

    An operator moves its inputs once and its outputs. One whose inputs are all parameters, or made
    of parameters, is a constant: an exported graph does not have it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's has no types
        self.launches: list[tuple[str, int]] = []
        self.constants: list[tuple[str, int]] = []
        self._constant: dict[int, torch.Tensor] = {}  # kept alive, so that an id stays its own

    @property
    def bytes(self) -> int:
        """The bytes that all launches move."""
        return sum(moved for _, moved in self.launches)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given, made = _tensors((args, kwargs)), _tensors(out)
        constant = bool(given) and all(self._is_constant(t) for t in given)
        if constant:
            self._constant.update({id(t): t for t in made})
        if name not in _VIEWS:
            found = self.constants if constant else self.launches
            found.append((name, sum(map(_held, given + made))))
        return out

    def _is_constant(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, torch.nn.Parameter) or id(tensor) in self._constant


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _held(tensor: torch.Tensor) -> int:
    """Return the bytes that a tensor covers; a broadcast dimension counts as one element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, stride in sizes if stride) * tensor.element_size()
