"""What a loss needs of the other processes of a distributed training."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Add up a tensor over the processes, without a gradient."""
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
        # Every process computes the same scalar of the same gathered batch, so its own slice, once for each process,
        # is the sum that a reduction over the processes would bring.
        return world_size() * grads[0].chunk(world_size())[dist.get_rank()]


class BatchGatherer:
    """Puts the batches of all processes together, differentiably, for a scalar that every process then computes.

    Processes with batches of different sizes would wait for each other for ever. So the sizes are exchanged too; they
    are read, which waits for the device, only by a process whose own size is not that of its last step. If the sizes
    were equal before, at least one process notices.
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
