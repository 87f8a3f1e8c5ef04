"""The memory traffic of the same mathematics as a chain of PyTorch operators."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.benchmarks.ledger.numerics import specified
from uino_deploy.benchmarks.ledger.operators import OperatorCount
from uino_deploy.benchmarks.ledger.traffic import arrays
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape, VolumeShape
from uino_deploy.kernels.compiler.variants import ELEMENT_BYTES, Shape, Variant
from uino_deploy.kernels.identity import EPS


def moved_bytes(variant: Variant, shape: Shape) -> tuple[int, int]:
    """Return (bytes into and out of the operators, the same with the product at its tile)."""
    if isinstance(shape, CorrelationShape):
        return correlation_bytes(variant, shape)
    if isinstance(shape, ScanShape):
        moved = scan_bytes(variant, shape)
    else:
        moved = volume_bytes(variant, shape)
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
    with torch.no_grad(), OperatorCount() as counter:
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
    *own, weight, bias, decay, skip = arrays(shape)[0]
    operands = [torch.empty(*size, dtype=dtype, device="meta") for size in own]
    operands += [torch.empty(*size, device="meta") for size in (weight, bias, decay, skip)]
    with torch.no_grad(), OperatorCount() as counter:
        specified(operands, shape)
    return counter.bytes


def volume_bytes(variant: Variant, shape: VolumeShape) -> int:
    """Return the bytes into and out of the reference's operators, without its casts to float32."""
    operands = [torch.empty(*size, device="meta") for size in arrays(shape)[0]]
    with torch.no_grad(), OperatorCount() as counter:
        specified(operands, shape)
    return counter.bytes * ELEMENT_BYTES[variant.dtype] // ELEMENT_BYTES["float32"]
