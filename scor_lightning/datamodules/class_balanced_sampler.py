"""A sampler for any loader that draws the classes more evenly than they occur."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from scor_lightning.datamodules.sampler import draw
from scor_lightning.seeding import Purpose, derived_generator


class ClassBalancedSampler(DistributedSampler[Any]):
    """Draws samples with replacement, class c in proportion to n_c ** (1 - power).

    An epoch is a function of the seed and its number; call ``set_epoch``, as Lightning does. Several processes each take
    their part of one order, so that together they draw the same as a single process.

    Args:
        targets: Class of each sample, ``[N]``.
        power: 0 draws classes as often as they occur, 1 equally often, .5 in proportion to the square root of their size.
        num_samples: Draws per epoch, over all processes; None is N. With several processes it is rounded up to a multiple of
            their number.
        seed: Seed of the draws.
        num_replicas: Number of processes; None uses the process group at the time of use.
        rank: Rank of this process; None likewise.

    Raises:
        ValueError: If the targets are not class indices, or num_samples < 1.

    Example:
        >>> sampler = ClassBalancedSampler([0] * 90 + [1] * 10, power=1.0)
        >>> drawn = torch.tensor([*sampler])
        >>> len(drawn), 30 < int((drawn >= 90).sum()) < 70
        (100, True)
    """

    def __init__(
        self,
        targets: Tensor | Sequence[int],
        power: float = 1.0,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        labels = torch.as_tensor(targets)
        if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or bool((labels < 0).any()):
            raise ValueError(f"Expected `targets` to be a class index per sample but got {targets}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"Expected `num_samples` >= 1 but got {num_samples}")
        # Lightning recognises the base class as distributed; given arguments prevent it from using the process group now.
        super().__init__(range(len(labels)), num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        counts = torch.bincount(labels.long())
        self.weights = counts[labels.long()].double() ** -power
        self.power = power
        self.draws = len(labels) if num_samples is None else num_samples
        self._given = num_replicas, rank
        self._begin = self._yielded = 0

    def _place(self) -> tuple[int, int]:
        """Return the number of processes and the rank."""
        together = dist.is_available() and dist.is_initialized()
        replicas, rank = self._given
        if replicas is None:
            replicas = dist.get_world_size() if together else 1
        if rank is None:
            rank = dist.get_rank() if together else 0
        return replicas, rank

    def __len__(self) -> int:
        """Return the number of draws of this process."""
        return ceil(self.draws / self._place()[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; a new epoch starts at its first draw."""
        if epoch != self.epoch:
            self._begin = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Return the indices of this process."""
        replicas, rank = self._place()
        order = draw(self.weights, len(self) * replicas, derived_generator(Purpose.ORDER, self.seed, self.epoch))
        begin, self._begin = self._begin, 0
        self._yielded = begin
        for index in order[rank::replicas][begin:].tolist():
            self._yielded += 1
            yield index

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its draws this process has taken.

        The workers of a loader prefetch draws; set ``yielded`` to the number of samples that were trained on.
        """
        return {"epoch": self.epoch, "yielded": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the draws that were taken."""
        self.epoch, self._begin = state["epoch"], state["yielded"]
