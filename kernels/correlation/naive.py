"""Correlation4d written as its mathematics: the specification, CPU path and test oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.kernels.identity import EPS


def correlation4d(
    query: Tensor, support: Tensor, weight: Tensor, height: int, width: int, pool: int
) -> Tensor:
    """Return relu(cosine) of every query and support token, weighted and averaged over windows.

    The arithmetic is float32 (float64 for float64 inputs), whatever the inputs' type.

    Args:
        query: [B, L, Nq, D], any floating type.
        support: [B or 1, K, L, Ns, D], the same type.
        weight: [B or 1, K, Ns], the same type.
        height: rows of the support grid; height * width = Ns.
        width: columns of the support grid.
        pool: side p of the averaging window; partial windows average the cells they have.

    Returns:
        [B, K, L, Nq, h'*w'] of the inputs' type, with h' = ceil(height / p), w' = ceil(width / p).
    """
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    q = _unit(query.to(compute))  # [B, L, Nq, D]
    s = _unit(support.to(compute))  # [B or 1, K, L, Ns, D]
    cosine = q[:, None] @ s.transpose(-1, -2)  # [B, K, L, Nq, Ns]
    volume = cosine.clamp(min=0) * weight.to(compute)[:, :, None, None, :]
    planes = volume.reshape(-1, 1, height, width)
    pooled = F.avg_pool2d(planes, pool, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*volume.shape[:-1], -1).to(query.dtype)


def _unit(tokens: Tensor) -> Tensor:
    return tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=EPS)
