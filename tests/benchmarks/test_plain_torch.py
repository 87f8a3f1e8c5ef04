"""The peers' operators agree with the references."""

import pytest
import torch

from uino_deploy.benchmarks.runners import plain_torch
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.selective_scan import naive as scan


def operands(sequences: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    channels, states, rank = 6, 4, 2
    generator = torch.Generator().manual_seed(height)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return (
        normal(sequences, height, width, channels),
        normal(sequences, height, width, 4, rank + 2 * states + 2),
        normal(4, channels, rank),
        normal(4, channels),
        -torch.exp(normal(4, channels, states)),
        normal(4, channels),
    )


@pytest.mark.parametrize("scanned", [plain_torch.scan_in_blocks, plain_torch.scan_by_rows])
@pytest.mark.parametrize("shape", [(2, 5, 5), (3, 4, 7), (1, 1, 1), (5, 1, 3)])
def test_scans_are_the_reference(scanned, shape, monkeypatch):
    monkeypatch.setattr(plain_torch, "_BLOCK", 500)  # several blocks
    given = operands(*shape)
    wanted = scan.selective_scan2d(*given)
    torch.testing.assert_close(scanned(*given), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_correlation_is_the_reference(dtype, allowed):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 25, 16, generator=generator)
    support = torch.randn(1, 2, 3, 25, 16, generator=generator)
    weight = torch.rand(1, 2, 25, generator=generator) * 2 - 1
    wanted = correlation.correlation4d(query, support, weight, 5, 5, 3)
    got = plain_torch.correlation4d(
        query.to(dtype), support.to(dtype), weight.to(dtype), 5, 5, 3
    ).float()
    assert (got - wanted).norm() / wanted.norm() < allowed
