"""One process, or several started by `torchrun`: their ranks and their communication."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as through
from torch import Tensor, nn

from uino_deploy.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process's place among all.

    Attributes:
        rank: this process's number, from 0; only process 0 writes.
        count: number of processes.
        device: the device that this process computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: list[int]) -> list[int]:
        """Return this process's part of a batch.

        Raises:
            InputError: the batch does not divide evenly.
        """
        if len(items) % self.count:
            raise InputError(
                f"a batch of {len(items)} cannot be shared by {self.count} processes",
                "give a --batch that the number of processes divides",
            )
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until all processes reach this point."""
        if self.count > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all processes, on each of them."""
        value = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(value)
        return value / self.count


ALONE = Processes(0, 1, torch.device("cpu"))
"""The only process, computing on the CPU."""


def is_first_process() -> bool:
    """Return whether this process writes and prints: the only one, or `torchrun`'s process 0."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Yield this process; under `torchrun` join the others (nccl on GPUs, gloo elsewhere)."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if count == 1:
        yield Processes(0, 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, on any device (PyTorch's own needs GPUs)."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        values = input.float()
        mean = _sum_over_processes(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum_over_processes(centred.square().sum(dim=(0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(now.to(running), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def _sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a value over all processes; gradients go through to each of them."""
    total: Tensor = through.all_reduce(value)  # type: ignore[no-untyped-call] # PyTorch's
    return total


def synchronise_batch_norms(module: nn.Module) -> None:
    """Replace a module's BatchNorms by synchronised ones with the same state."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = SynchronisedBatchNorm2d(child.num_features, child.eps, child.momentum)
            replacement.load_state_dict(child.state_dict())
            setattr(module, name, replacement.to(next(child.parameters()).device))
        else:
            synchronise_batch_norms(child)
