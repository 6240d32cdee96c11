"""Random streams that are pure functions of a key."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """The purpose of a random stream: the first part of its key, so that no two purposes share a stream."""

    CLASSES = 1
    SUBSET = 2
    HOLDOUT = 3
    VALIDATION = 4
    ORDER = 5
    STEP = 6
    DIGITS_TEST = 7
    AUGMENT = 8
    TEST = 9
    PERMUTATION = 10
    HEAD = 11
    MIXING = 12
    PARTNERS = 13
    REPEAT = 20


def derived_seed(purpose: Purpose, *key: int) -> int:
    """Return a seed in ``0..2**63-1`` that is a pure function of a purpose and a key, such as ``(seed, epoch)``.

    The key is hashed by :class:`numpy.random.SeedSequence`, so that neighbouring keys give unrelated streams
    (``seed + epoch`` would give seed 0 in epoch 1 the order of seed 1 in epoch 0).

    Example:
        >>> derived_seed(Purpose.ORDER, 0, 1) == derived_seed(Purpose.ORDER, 1, 0)
        False
    """
    return int(np.random.SeedSequence((purpose, *key)).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generators within a block, and restore them afterwards."""
    if not torch.cuda.is_initialized():  # otherwise `manual_seed` queues a seed for CUDA
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class StepSeed:
    """Seeds torch's default generators at each training step, so that dropout is a function of seed, process and step.

    A resumed run then draws the same numbers. The seed is torch's initial seed when the object is created.
    """

    def __init__(self) -> None:
        self._seed = torch.initial_seed()
        self._epoch, self._first, self._step = -1, 0, 0

    def __call__(self, epoch: int, step: int, rank: int, device: torch.device) -> None:
        """Seed a step of an epoch in a process."""
        if epoch != self._epoch:
            self._epoch, self._first = epoch, derived_seed(Purpose.STEP, self._seed, epoch, rank) >> 1
        self._step = step
        self.again(device)

    def again(self, device: torch.device) -> None:
        """Seed the last step again, for a second pass with the same random numbers."""
        step = self._step
        if device.type == "cpu":  # without CUDA, `manual_seed` queues a call for it every time
            torch.default_generator.manual_seed(self._first + step)
        else:
            torch.manual_seed(self._first + step)


def derived_generator(purpose: Purpose, *key: int) -> torch.Generator:
    """Return a generator on the CPU with :func:`derived_seed`, the same on every machine."""
    return torch.Generator().manual_seed(derived_seed(purpose, *key))
