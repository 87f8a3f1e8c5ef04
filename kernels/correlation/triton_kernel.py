"""Correlation4d in one Triton launch: dot products, both norms, ReLU, weight and window mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels.correlation.plugin import LARGEST_POOL
from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.triton_cells import capability_of, dot

_GROUP_Q = 4
_INFINITY = tl.constexpr(float("inf"))
_LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite float32


@dataclass(frozen=True)
class Tile:
    """The compile-time constants of one variant.

    A block computes `block_q` query tokens against `block_s` support slots, `block_d` channels at
    a time; `precision` is how `tl.dot` multiplies float32 operands. With `serial`, the two products
    that pool half-precision cosines run one after the other.
    """

    block_q: int
    block_s: int
    block_d: int
    warps: int
    stages: int
    precision: str = "tf32x3"
    serial: bool = False
    settle: bool = False

    def constants(self, pool: int) -> dict[str, Any]:
        """Return the kernel's compile-time arguments for windows of pool x pool cells."""
        windows = self.block_s // pool**2
        return {
            "POOL": pool,
            "BLOCK_Q": self.block_q,
            "BLOCK_S": self.block_s,
            "BLOCK_D": self.block_d,
            # Every tensor core multiplies at least 16 columns.
            "BLOCK_W": max(16, triton.next_power_of_2(windows)),
            "GROUP_Q": _GROUP_Q,
            "EPSILON": EPS,
            "PRECISION": self.precision,
            "SERIAL": self.serial,
            "SETTLE": self.settle,
            "WIDEN": False,
        }

    def grid(
        self, batch: int, shots: int, layers: int, n_query: int, height: int, width: int, pool: int
    ) -> tuple[int, int, int]:
        """Return the launch grid: (tiles of queries and windows, layers, batch and shots)."""
        windows = triton.cdiv(height, pool) * triton.cdiv(width, pool)
        tiles = triton.cdiv(n_query, self.block_q)
        tiles *= triton.cdiv(windows, self.block_s // pool**2)
        return tiles, layers, batch * shots


def tile_for(element_bytes: int, capability: int) -> Tile:
    """Return the tile for an element size and a compute capability (87 for sm_87).

    The README of this folder derives the sizes; all need at most 48 KB of shared memory.
    """
    if capability < 80:  # Triton has no tensor-core path for sm_75: multiply-adds, smaller tile
        return Tile(64, 64, 16, 8, 2, "ieee")
    if capability in (100, 103, 110):  # tcgen05: the accumulator is in tensor memory
        return Tile(128, 128, 32, 8, 2) if element_bytes == 2 else Tile(64, 64, 16, 4, 2, "ieee")
    if element_bytes == 2 and capability == 90:  # wgmma
        return Tile(128, 128, 32, 8, 4, settle=True)
    if element_bytes == 2:  # depth 16 halves ldmatrix's bank conflicts
        return Tile(128, 128, 16, 8, 7, serial=capability != 80)
    return Tile(128, 64, 16, 8, 3 if capability == 90 else 4)


@triton.jit
def correlation4d_kernel(
    query_ptr,  # [B, L, Nq, D]
    support_ptr,  # [B or 1, K, L, Ns, D]
    weight_ptr,  # [B or 1, K, Ns]
    layers,
    shots,
    n_query,
    channels,
    height,
    width,
    support_batches,  # B or 1
    weight_batches,  # B or 1
    out_ptr,  # [B, K, L, Nq, h'*w']
    POOL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    GROUP_Q: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    SERIAL: tl.constexpr,
    SETTLE: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply as float32: the interpreter would multiply bfloat16's bits
):
    """One tile: BLOCK_Q query tokens against the support tokens of BLOCK_S // POOL**2 windows."""
    CELLS: tl.constexpr = POOL * POOL
    WINDOWS: tl.constexpr = BLOCK_S // CELLS
    VECTOR: tl.constexpr = 128 // query_ptr.dtype.element_ty.primitive_bitwidth
    windows_across = tl.cdiv(width, POOL)
    n_windows = tl.cdiv(height, POOL) * windows_across
    n_support = height * width
    layer = tl.program_id(1)
    shot = tl.program_id(2) % shots
    batch = tl.program_id(2) // shots

    # GROUP_Q query tiles walk over the windows together, so that a support tile fetched into the
    # L2 cache serves all of them.
    window_tiles = tl.cdiv(n_windows, WINDOWS)
    group = tl.program_id(0) // (GROUP_Q * window_tiles)
    in_group = tl.program_id(0) % (GROUP_Q * window_tiles)
    group_size = tl.minimum(tl.cdiv(n_query, BLOCK_Q) - group * GROUP_Q, GROUP_Q)
    q_tile = group * GROUP_Q + in_group % group_size
    w_tile = in_group // group_size

    # Slots hold the support tokens window by window: slot s is cell s % CELLS of window s // CELLS.
    slot = tl.arange(0, BLOCK_S)
    window = w_tile * WINDOWS + slot // CELLS
    if WINDOWS * CELLS < BLOCK_S:  # the remaining slots belong to no window
        window = tl.where(slot < WINDOWS * CELLS, window, n_windows)
    y = window // windows_across * POOL + slot % CELLS // POOL
    x = window % windows_across * POOL + slot % POOL
    inside = (window < n_windows) & (y < height) & (x < width)
    token = tl.where(inside, y * width + x, 0)

    row = q_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = row < n_query
    d = tl.arange(0, BLOCK_D)
    query_plane = (batch * layers + layer).to(tl.int64) * n_query * channels
    support_set = (batch % support_batches) * shots + shot
    support_plane = (support_set * layers + layer).to(tl.int64) * n_support * channels
    q_ptrs = query_ptr + query_plane + row[:, None] * channels + d[None, :]
    s_ptrs = support_ptr + support_plane + token[:, None] * channels + d[None, :]

    dots = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    # The squares are summed inside each thread's 16 bytes in the loop, across threads after it.
    q_squares = tl.zeros((BLOCK_Q, BLOCK_D // VECTOR), tl.float32)
    s_squares = tl.zeros((BLOCK_S, BLOCK_D // VECTOR), tl.float32)
    for start in range(0, channels, BLOCK_D):
        d_ok = (d + start < channels)[None, :]
        q = tl.load(q_ptrs, mask=row_ok[:, None] & d_ok, other=0.0)
        s = tl.load(s_ptrs, mask=inside[:, None] & d_ok, other=0.0)
        dots = dot(q, s.T, dots, PRECISION, WIDEN)
        q32 = tl.reshape(q.to(tl.float32), (BLOCK_Q, BLOCK_D // VECTOR, VECTOR))
        s32 = tl.reshape(s.to(tl.float32), (BLOCK_S, BLOCK_D // VECTOR, VECTOR))
        q_squares += tl.sum(q32 * q32, 2)
        s_squares += tl.sum(s32 * s32, 2)
        if SETTLE:
            # No instruction, but a use of the sums: Triton waits for the product here, instead of
            # copying the next tile over the one that the product still reads.
            dots = tl.inline_asm_elementwise("", "=f,0", [dots], tl.float32, True, 1)
        q_ptrs += BLOCK_D
        s_ptrs += BLOCK_D

    # A token with a NaN or an infinity shows in its norm. A query's makes its whole row NaN. A
    # support's makes its weight NaN and its cosines zero: a NaN cosine would reach, as NaN * 0 in
    # the product that pools, every window of the tile.
    q_norm = tl.sqrt(tl.sum(q_squares, 1))
    s_norm = tl.sqrt(tl.sum(s_squares, 1))
    q_inverse = tl.where(q_norm < _INFINITY, 1.0 / tl.maximum(q_norm, EPSILON), float("nan"))
    s_inverse = tl.where(s_norm < _INFINITY, 1.0 / tl.maximum(s_norm, EPSILON), 0.0)
    positive = tl.minimum(tl.maximum(dots, 0.0), _LARGEST)
    cosine = positive * q_inverse[:, None] * s_inverse[None, :]
    weight_set = (batch % weight_batches) * shots + shot
    weight = tl.load(
        weight_ptr + weight_set.to(tl.int64) * n_support + token, mask=inside, other=0.0
    )
    weight = tl.where(s_norm < _INFINITY, weight, float("nan"))
    column = tl.arange(0, BLOCK_W)
    out_window = w_tile * WINDOWS + column
    if POOL == 1:
        pooled = cosine * weight.to(tl.float32)[None, :]
    else:
        # The weighted sum over each window is a product with the matrix that holds slot s's weight
        # in its window's column. The cosine enters as the sum of two numbers of the weight's type,
        # which keeps 16 bits or more of it.
        mine = (slot // CELLS)[:, None] == column[None, :]
        choose = tl.where(mine, weight[:, None], 0.0).to(weight.dtype)
        pooled = tl.zeros((BLOCK_Q, BLOCK_W), tl.float32)
        if weight.dtype == tl.float32:
            pooled = dot(cosine, choose, pooled, PRECISION, WIDEN)
        elif SERIAL:
            # A loop that no compiler unrolls, because the number of channels may be zero, holds
            # one of the two numbers at a time.
            for _ in range(tl.where(channels > 0, 2, 0)):
                high = cosine.to(weight.dtype)
                pooled = dot(high, choose, pooled, PRECISION, WIDEN)
                cosine -= high.to(tl.float32)
        else:
            high = cosine.to(weight.dtype)
            pooled = dot(high, choose, pooled, PRECISION, WIDEN)
            low = (cosine - high.to(tl.float32)).to(weight.dtype)
            pooled = dot(low, choose, pooled, PRECISION, WIDEN)
        cells_down = tl.minimum(height - out_window // windows_across * POOL, POOL)
        cells_across = tl.minimum(width - out_window % windows_across * POOL, POOL)
        # Padding windows have no cells and are not stored.
        cells = tl.maximum(cells_down * cells_across, 1)
        pooled = pooled / cells.to(tl.float32)[None, :]

    out_set = (batch * shots + shot) * layers + layer
    out_plane = out_ptr + out_set.to(tl.int64) * n_query * n_windows
    out_ok = row_ok[:, None] & ((out_window < n_windows) & (column < WINDOWS))[None, :]
    out_ptrs = out_plane + row[:, None] * n_windows + out_window[None, :]
    tl.store(out_ptrs, pooled.to(out_ptr.dtype.element_ty), mask=out_ok)


def correlation4d(
    query: Tensor,
    support: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    pool: int,
    tile: Tile | None = None,
) -> Tensor:
    """Launch the kernel; shapes and mathematics are those of `naive.correlation4d`.

    Args:
        query: [B, L, Nq, D], float32, float16 or bfloat16; non-contiguous inputs are copied.
        support: [B or 1, K, L, Ns, D], the same type.
        weight: [B or 1, K, Ns], the same type.
        height: rows of the support grid.
        width: columns of the support grid.
        pool: side of the averaging window, 1 to `LARGEST_POOL`.
        tile: the variant; `tile_for` chooses if None.

    Returns:
        [B, K, L, Nq, h'*w'] of the inputs' type.

    Raises:
        ValueError: a pool above `LARGEST_POOL`.
    """
    if not 1 <= pool <= LARGEST_POOL:
        raise ValueError(f"the kernel pools windows of 1 to {LARGEST_POOL} cells, not {pool}")
    batch, layers, n_query, channels = query.shape
    shots = support.shape[1]
    tile = tile or tile_for(query.element_size(), capability_of(query))
    windows = triton.cdiv(height, pool) * triton.cdiv(width, pool)
    out = query.new_empty(batch, shots, layers, n_query, windows)
    if not out.numel():
        return out
    constants = tile.constants(pool)
    constants["WIDEN"] = not query.is_cuda and query.dtype == torch.bfloat16
    correlation4d_kernel[tile.grid(batch, shots, layers, n_query, height, width, pool)](
        query.contiguous(),
        support.contiguous(),
        weight.contiguous(),
        layers,
        shots,
        n_query,
        channels,
        height,
        width,
        support.shape[0],
        weight.shape[0],
        out,
        **constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out
