"""The memory traffic of the same mathematics as a chain of PyTorch operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape
from uino_deploy.kernels.compiler.variants import Variant
from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.selective_scan import naive

_VIEWS = {
    *("view", "_unsafe_view", "expand", "unsqueeze", "squeeze", "transpose", "t", "permute"),
    *("reshape", "detach", "slice", "select", "unbind", "alias", "as_strided", "split"),
}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's has no types
    """A mode that sums the bytes into and out of every operator that touches memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's has no types
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in _VIEWS:
            leaves = tree_leaves((args, kwargs, out))
            self.bytes += sum(_held(a) for a in leaves if isinstance(a, torch.Tensor))
        return out


def _held(tensor: torch.Tensor) -> int:
    """Return the bytes that a tensor covers; a broadcast dimension counts as one element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, stride in sizes if stride) * tensor.element_size()


def moved_bytes(variant: Variant, shape: CorrelationShape | ScanShape) -> tuple[int, int]:
    """Return (bytes into and out of the operators, the same with the product at its tile)."""
    if isinstance(shape, CorrelationShape):
        return correlation_bytes(variant, shape)
    moved = scan_bytes(variant, shape)
    return moved, moved


def correlation_bytes(variant: Variant, shape: CorrelationShape) -> tuple[int, int]:
    """Return (bytes into and out of the operators, the same with the product at its tile).

    The formulation is cosine by `normalize` and `matmul`, `relu`, the weight, `avg_pool2d`, in the
    variant's type, run on tensors without storage. At its tile the product reads each operand once
    for every tile of the other.
    """
    dtype = getattr(torch, variant.dtype)
    s = shape
    query = torch.empty(s.batch, s.layers, s.n_query, s.channels, dtype=dtype, device="meta")
    tokens = s.height * s.width
    support = torch.empty(
        s.batch, s.shots, s.layers, tokens, s.channels, dtype=dtype, device="meta"
    )
    weight = torch.empty(s.batch, s.shots, 1, 1, tokens, dtype=dtype, device="meta")
    with torch.no_grad(), _Counter() as counter:
        unit = F.normalize(query, dim=-1, eps=EPS)[:, None]
        cosine = unit @ F.normalize(support, dim=-1, eps=EPS).transpose(-1, -2)
        volume = torch.relu(cosine) * weight
        planes = volume.view(-1, 1, s.height, s.width)
        F.avg_pool2d(planes, s.pool, ceil_mode=True, count_include_pad=False)
    block_q, block_s = variant.constants["BLOCK_Q"], variant.constants["BLOCK_S"]
    sets = s.batch * s.shots * s.layers * s.channels * query.element_size()
    reads = s.n_query * -(-tokens // block_s) + tokens * -(-s.n_query // block_q)
    once = s.n_query + tokens
    return counter.bytes, counter.bytes + sets * (reads - once)


def scan_bytes(variant: Variant, shape: ScanShape) -> int:
    """Return the bytes into and out of the operators of the reference's loop over the steps."""
    dtype = getattr(torch, variant.dtype)
    s = shape

    def empty(*size: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*size, dtype=kind, device="meta")

    plane = (s.sequences, s.height, s.width)
    operands = [
        empty(*plane, s.channels),
        empty(*plane, 4, s.rank),
        empty(*plane, 4, s.states),
        empty(*plane, 4, s.states),
        empty(4, s.channels, s.rank, kind=torch.float32),
        empty(4, s.channels, kind=torch.float32),
        empty(4, s.channels, s.states, kind=torch.float32),
        empty(4, s.channels, kind=torch.float32),
    ]
    with torch.no_grad(), _Counter() as counter:
        naive.selective_scan2d(*operands)
    return counter.bytes
