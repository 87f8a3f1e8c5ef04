"""Muon against PyTorch's own, and its steps."""

import pytest
import torch

from uino_deploy.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_steps_are_those_of_pytorchs_own():
    torch.manual_seed(0)
    shapes = [(16, 16), (48, 16), (16, 16), (16, 64)]
    ours = [torch.randn(shape).requires_grad_() for shape in shapes]
    theirs = [matrix.detach().clone().requires_grad_() for matrix in ours]
    start = [matrix.detach().clone() for matrix in ours]
    optimisers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other, begin in zip(ours, theirs, start, strict=True):
        moved = torch.linalg.norm(other - begin)
        assert torch.linalg.norm(one - other) < 0.03 * moved  # bfloat16, in another order


def test_matrices_without_a_gradient_stay():
    matrix = torch.ones(4, 4, requires_grad=True)
    Muon([matrix], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(4, 4))
