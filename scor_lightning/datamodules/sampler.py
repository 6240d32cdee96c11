"""The order of the batches: a pure function of seed and epoch, distributed over processes, resumable at any batch."""

import time
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from scor_lightning.seeding import Purpose, derived_generator
from scor_lightning.signals import leave_signals_to_the_main_process


class Draws(NamedTuple):
    """The samples of a batch.

    Args:
        positions: Indices in the set, int64 ``[B]``.
        seeds: Random bits for the augmentation of each sample, int64 ``[B]`` in [0, 2**62); None without shuffling.
    """

    positions: Tensor
    seeds: Tensor | None


class BatchSampler(DistributedSampler[Draws]):
    """Yields batches of indices, this process's part of each, with seeds for their augmentation.

    The samples are permuted as a function of ``(seed, epoch)`` and divided into batches of ``batch_size``; process r takes
    the r-th part of every batch, so that the batches over all processes are the same for any number of processes. A
    sample's seed is a function of ``(seed, epoch, index)``; with ``weights``, which may repeat a sample, of ``(seed,
    epoch)`` and its position in the order. The class derives from :class:`~torch.utils.data.DistributedSampler` so that
    Lightning calls ``set_epoch`` and does not replace the sampler.

    Args:
        size: Number of samples.
        batch_size: Samples per batch, the total over all processes.
        shuffle: Draw a permutation. With several processes the last incomplete batch is dropped; with one it is kept, and
            a last batch of a single sample is merged into the previous one. False yields the samples in their order, each
            once.
        seed: Seed of the permutations.
        weights: Float ``[size]`` >= 0. If given, an epoch consists of ``size`` independent draws with these relative
            probabilities instead of a permutation.
        weights_from: First epoch, from 0, in which the weights are used.
        partner_weights: Float ``[size]`` >= 0. If given, every part of a batch is followed by equally many partners, drawn
            with these relative probabilities as a function of ``(seed, epoch)`` and the position in the order.
        num_replicas: Number of processes.
        rank: Rank of this process.

    Raises:
        ValueError: If ``batch_size`` is not a positive multiple of ``num_replicas``, or exceeds the data if incomplete
            batches are dropped.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        weights: Tensor | None = None,
        weights_from: int = 0,
        partner_weights: Tensor | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(range(size), num_replicas, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        if batch_size < 1 or batch_size % num_replicas:
            raise ValueError(
                f"Expected `batch_size`, the total over all processes, to be a positive multiple of their number "
                f"{num_replicas} but got {batch_size}"
            )
        self.batch_size = batch_size
        self.weights = weights
        self.weights_from = weights_from
        self.partner_weights = partner_weights
        self.offset = 0
        self._size = size
        self._drop_incomplete = shuffle and num_replicas > 1
        if len(self) == 0:
            raise ValueError(f"Expected at least `batch_size` = {batch_size} samples but got {size}")

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        if self._drop_incomplete:
            return self._size // self.batch_size
        return ceil(self._size / self.batch_size) - self._joins_last

    @property
    def _joins_last(self) -> bool:
        """Whether the last batch of an epoch would be a single sample, on which batch norm cannot be trained."""
        return (
            self.shuffle
            and not self._drop_incomplete
            and 1 < self.batch_size < self._size
            and self._size % self.batch_size == 1
        )

    def _cut(self, samples: Tensor) -> list[Tensor]:
        batches = list(torch.split(samples, self.batch_size))
        if self._joins_last:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches[self.offset : len(self)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; a new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.offset = 0
        super().set_epoch(epoch)

    def order(self) -> Tensor:
        """Return the samples of this epoch in their order, int64 ``[size]``."""
        if not self.shuffle:
            return torch.arange(self._size)
        generator = derived_generator(Purpose.ORDER, self.seed, self.epoch)
        if self._weighted:
            assert self.weights is not None
            return draw(self.weights, self._size, generator)
        return torch.randperm(self._size, generator=generator)

    @property
    def _weighted(self) -> bool:
        return self.weights is not None and self.epoch >= self.weights_from

    def __iter__(self) -> Iterator[Draws]:
        """Return the batches from ``offset`` on."""
        order = self.order()
        batches = self._cut(order)
        if not self.shuffle:
            yield from (Draws(part, None) for part in self._parts(batches))
            return
        seeds = torch.randint(2**62, (self._size,), generator=derived_generator(Purpose.AUGMENT, self.seed, self.epoch))
        if not self._weighted:
            seeds = seeds[order]
        parts = map(Draws, self._parts(batches), self._parts(self._cut(seeds)))
        if self.partner_weights is None:
            yield from parts
            return
        generator = derived_generator(Purpose.PARTNERS, self.seed, self.epoch)
        drawn = self._parts(self._cut(draw(self.partner_weights, self._size, generator)))
        bits = self._parts(self._cut(torch.randint(2**62, (self._size,), generator=generator)))
        for part, partners, seeds_of_partners in zip(parts, drawn, bits, strict=True):
            assert part.seeds is not None  # a training set has seeds
            yield Draws(torch.cat([part.positions, partners]), torch.cat([part.seeds, seeds_of_partners]))

    def _parts(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            if len(part := batch.tensor_split(self.num_replicas)[self.rank]):
                yield part


def draw(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw with replacement, with relative probabilities ``[n]``; `torch.multinomial` takes 2**24 weights at most."""
    ends = weights.double().cumsum(0)
    drawn = torch.rand(number, dtype=torch.float64, generator=generator) * ends[-1]
    last = int(weights.nonzero()[-1])  # rounding must not exceed the end of the range
    return torch.searchsorted(ends, drawn, right=True).clamp_max(last)


class ResumableDataLoader(DataLoader[Any]):
    """A loader whose position is stored in checkpoints, also in mid-epoch.

    Lightning saves :meth:`state_dict` in the checkpoint and loads it before it iterates.

    Args:
        dataset: Returns a batch for :class:`Draws`.
        sampler: Yields the draws.
        num_workers: Worker processes; 0 loads in the training process.

    Attributes:
        seconds_waited: Wall time that the training process spent waiting for batches.
    """

    sampler: BatchSampler

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, num_workers: int = 0, **kwargs: Any) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
            **kwargs,
        )
        self._given = 0
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Return the batches of the sampler's epoch from its offset on."""
        self._given = self.sampler.offset
        began = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - began
            self._given += 1
            yield batch
            began = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and its number of yielded batches; after the last one, the start of the next epoch."""
        if self._given >= len(self):
            return {"epoch": self.sampler.epoch + 1, "given": 0}
        return {"epoch": self.sampler.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batches that were yielded."""
        self.sampler.set_epoch(state["epoch"])
        self.sampler.offset = self._given = state["given"]
