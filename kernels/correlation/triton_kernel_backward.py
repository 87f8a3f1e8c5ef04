"""The gradient of Correlation4d in Triton: one launch over the cosines, and two matrix products.

With c the cosine, G the output's gradient spread over its window's cells and w the weight, the
kernel writes of_c = G w [c >= 0] once, in the inputs' type. From each tile it also sums G relu(c),
the weight's gradient, and of_c c by row and by column. PyTorch computes the products of of_c with
the unit tokens; a token's own gradient is (product - unit * sum) / length.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.triton_cells import dot

_BLOCK = 64
WARPS = 4
STAGES = 3


@triton.jit
def correlation4d_backward_kernel(
    query_ptr,  # [B, L, Nq, D]
    support_ptr,  # [B or 1, K, L, Ns, D]
    weight_ptr,  # [B or 1, K, Ns]
    gradient_ptr,  # [B, K, L, Nq, h'*w']
    layers,
    shots,
    n_query,
    channels,
    height,
    width,
    support_batches,  # B or 1
    weight_batches,  # B or 1
    of_cosine_ptr,  # [B, K, L, Nq, Ns]
    of_weight_ptr,  # [query tiles, B, K, L, Ns], float32
    along_queries_ptr,  # [query tiles, B, K, L, Ns], float32
    along_supports_ptr,  # [support tiles, B, K, L, Nq], float32
    POOL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile: BLOCK_Q query tokens against BLOCK_S support tokens."""
    n_support = height * width
    support_tiles = tl.cdiv(n_support, BLOCK_S)
    q_tile = tl.program_id(0) // support_tiles
    s_tile = tl.program_id(0) % support_tiles
    layer = tl.program_id(1)
    shot = tl.program_id(2) % shots
    batch = tl.program_id(2) // shots
    row = q_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    column = s_tile * BLOCK_S + tl.arange(0, BLOCK_S)
    row_ok = row < n_query
    column_ok = column < n_support
    both_ok = row_ok[:, None] & column_ok[None, :]

    support_set = (batch % support_batches) * shots + shot
    query_plane = (batch * layers + layer).to(tl.int64) * n_query * channels
    support_plane = (support_set * layers + layer).to(tl.int64) * n_support * channels
    d = tl.arange(0, BLOCK_D)
    q_ptrs = query_ptr + query_plane + row[:, None] * channels + d[None, :]
    s_ptrs = support_ptr + support_plane + column[:, None] * channels + d[None, :]
    dots = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    q_squares = tl.zeros((BLOCK_Q,), tl.float32)
    s_squares = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, channels, BLOCK_D):
        d_ok = (d + start < channels)[None, :]
        q = tl.load(q_ptrs, mask=row_ok[:, None] & d_ok, other=0.0)
        s = tl.load(s_ptrs, mask=column_ok[:, None] & d_ok, other=0.0)
        dots = dot(q, s.T, dots, PRECISION, WIDEN)
        q_squares += tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)
        s_squares += tl.sum(s.to(tl.float32) * s.to(tl.float32), 1)
        q_ptrs += BLOCK_D
        s_ptrs += BLOCK_D
    q_inverse = 1.0 / tl.maximum(tl.sqrt(q_squares), EPSILON)
    s_inverse = 1.0 / tl.maximum(tl.sqrt(s_squares), EPSILON)
    cosine = dots * q_inverse[:, None] * s_inverse[None, :]

    # The output's gradient, from the window that contains a support token.
    windows_across = tl.cdiv(width, POOL)
    n_windows = tl.cdiv(height, POOL) * windows_across
    down = column // width // POOL
    across = column % width // POOL
    cells = tl.minimum(height - down * POOL, POOL) * tl.minimum(width - across * POOL, POOL)
    plane = ((batch * shots + shot) * layers + layer).to(tl.int64)
    window = down * windows_across + across
    gradient_ptrs = gradient_ptr + plane * n_query * n_windows
    gradient_ptrs += row[:, None] * n_windows + window[None, :]
    gradient = tl.load(gradient_ptrs, mask=both_ok, other=0.0).to(tl.float32)
    gradient = gradient / tl.maximum(cells, 1).to(tl.float32)[None, :]

    weight_set = (batch % weight_batches) * shots + shot
    weight_ptrs = weight_ptr + weight_set.to(tl.int64) * n_support + column
    weight = tl.load(weight_ptrs, mask=column_ok, other=0.0).to(tl.float32)
    positive = cosine >= 0.0
    of_cosine = tl.where(positive, gradient * weight[None, :], 0.0)
    out_ptrs = of_cosine_ptr + plane * n_query * n_support
    out_ptrs += row[:, None] * n_support + column[None, :]
    tl.store(out_ptrs, of_cosine.to(of_cosine_ptr.dtype.element_ty), mask=both_ok)

    planes = tl.num_programs(1).to(tl.int64) * tl.num_programs(2)
    by_column = (q_tile * planes + plane) * n_support + column
    rectified = tl.where(positive, gradient * cosine, 0.0)
    tl.store(of_weight_ptr + by_column, tl.sum(rectified, 0), mask=column_ok)
    product = of_cosine * cosine
    tl.store(along_queries_ptr + by_column, tl.sum(product, 0), mask=column_ok)
    by_row = (s_tile * planes + plane) * n_query + row
    tl.store(along_supports_ptr + by_row, tl.sum(product, 1), mask=row_ok)


def constants(pool: int, element_bytes: int) -> dict[str, Any]:
    """Return the kernel's compile-time arguments for a window side and an element size."""
    return {
        "POOL": pool,
        "BLOCK_Q": _BLOCK,
        "BLOCK_S": _BLOCK,
        "BLOCK_D": 64 // element_bytes,
        "EPSILON": EPS,
        "PRECISION": "ieee",
        "WIDEN": False,
    }


def correlation4d_backward(
    query: Tensor,
    support: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    pool: int,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the three operands of `naive.correlation4d`.

    Args:
        query: [B, L, Nq, D], float32, float16 or bfloat16; non-contiguous inputs are copied.
        support: [B or 1, K, L, Ns, D], the same type.
        weight: [B or 1, K, Ns], the same type.
        height: rows of the support grid.
        width: columns of the support grid.
        pool: side of the averaging window.
        gradient: [B, K, L, Nq, h'*w'], the result's gradient, the same type.

    Returns:
        The gradients of query, support and weight, each of its operand's shape and type.
    """
    batch, layers, n_query, channels = query.shape
    shots, n_support = support.shape[1], support.shape[3]
    plane = (batch, shots, layers)
    tiles = [triton.cdiv(n, _BLOCK) for n in (n_query, n_support)]
    of_cosine = query.new_empty(*plane, n_query, n_support)
    if not (of_cosine.numel() and channels):
        return torch.zeros_like(query), torch.zeros_like(support), torch.zeros_like(weight)
    of_weight, along_queries = (
        query.new_empty(tiles[0], *plane, n_support, dtype=torch.float32) for _ in range(2)
    )
    along_supports = query.new_empty(tiles[1], *plane, n_query, dtype=torch.float32)
    fixed = constants(pool, query.element_size())
    fixed["WIDEN"] = not query.is_cuda and query.dtype == torch.bfloat16
    correlation4d_backward_kernel[(tiles[0] * tiles[1], layers, batch * shots)](
        query.contiguous(),
        support.contiguous(),
        weight.contiguous(),
        gradient.contiguous(),
        layers,
        shots,
        n_query,
        channels,
        height,
        width,
        support.shape[0],
        weight.shape[0],
        of_cosine,
        of_weight,
        along_queries,
        along_supports,
        **fixed,
        num_warps=WARPS,
        num_stages=STAGES,
        enable_fp_fusion=True,
    )
    q_unit, q_length = _unit(query)
    s_unit, s_length = _unit(support)
    of_query = _of_tokens(
        (of_cosine @ s_unit).sum(1), q_unit, q_length, along_supports.sum((0, 2)), query
    )
    of_support = of_cosine.transpose(-1, -2) @ q_unit[:, None]
    along_queries = along_queries.sum(0)
    of_weight = of_weight.sum((0, 3))
    if support.shape[0] < batch:
        of_support = of_support.sum(0, keepdim=True)
        along_queries = along_queries.sum(0, keepdim=True)
    if weight.shape[0] < batch:
        of_weight = of_weight.sum(0, keepdim=True)
    of_support = _of_tokens(of_support, s_unit, s_length, along_queries, support)
    return of_query, of_support, of_weight.to(weight.dtype)


def _unit(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens at length 1, in their type, and their lengths in float32."""
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float32)
    return (tokens / length.clamp(min=EPS)).to(tokens.dtype), length


def _of_tokens(
    of_unit: Tensor, unit: Tensor, length: Tensor, along: Tensor, tokens: Tensor
) -> Tensor:
    """Return the gradient of tokens [.., D] from that of their unit vectors, and its part along.

    Tokens shorter than EPS are only divided by it, so they keep the part along themselves.
    """
    kept = torch.where(length < EPS, 0.0, along[..., None])
    return ((of_unit - unit * kept) / length.clamp(min=EPS)).to(tokens.dtype)
