"""Communication of losses between the processes of a distributed training."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, without a gradient."""
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def share_generator(generator: torch.Generator, device: torch.device) -> None:
    """Copy the state of the first process's generator to all processes; they communicate over `device`."""
    state = generator.get_state().to(device)
    dist.broadcast(state, src=0)
    generator.set_state(state.cpu())


class _AllGather(torch.autograd.Function):
    """Concatenate the tensors of all processes along the first dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((world_size() * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every process computes the same scalar from the same gathered batch, so its own slice times the number of
        # processes is the sum that a reduction over the processes would return.
        return world_size() * grads[0].chunk(world_size())[dist.get_rank()]


class BatchGatherer:
    """Concatenates the batches of all processes, differentiably, so that every process can compute the same scalar.

    Processes with batches of different sizes would deadlock, so the sizes are exchanged too. A process reads them, which
    synchronises with the device, only if its own size has changed since its last step; if sizes become different, at
    least one process detects it.
    """

    def __init__(self) -> None:
        self._size: int | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Gather tensors ``[B, ...]`` into ``[W * B, ...]``, W processes, in the order of their ranks.

        Raises:
            ValueError: If the processes have batches of different sizes.
        """
        if world_size() == 1:
            return tensors
        size = len(tensors[0])
        sizes = _AllGather.apply(torch.full((1,), size, device=tensors[0].device))
        if size != self._size and len(set(every := sizes.tolist())) > 1:
            raise ValueError(
                f"Expected batches of one size on all processes but got {every}: drop the last incomplete batch, or "
                "set `gather_distributed` to false"
            )
        self._size = size
        return tuple(_AllGather.apply(x) for x in tensors)
