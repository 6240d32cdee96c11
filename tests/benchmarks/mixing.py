"""A training step with mixing, or with SAM, against the plain step, side by side in one run.

    python -m tests.benchmarks.mixing [--steps 8] [--rounds 3]

ResNet-32 for CIFAR, batches of 128 images of 32 x 32, SGD. Exits with 1 if mixing costs more than 10 %, or SAM more than
2.1 plain steps.
"""

import argparse
import sys
import time
from functools import partial, reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from scor_lightning.losses import WeightedCrossEntropyLoss
from scor_lightning.losses.base import loss_terms, mixed_loss_terms
from scor_lightning.mixing import CMO, CutMix, Mixing, Mixup, Remix
from scor_lightning.models import CifarResNet
from scor_lightning.optim import sharpness_aware

BATCH = 128


def seconds(kind: Mixing | Literal["SAM"] | None, steps: int) -> float:
    """Return the seconds of the fastest of several steps."""
    mixing = None if kind == "SAM" else kind
    torch.manual_seed(0)
    network, loss = CifarResNet(10), WeightedCrossEntropyLoss()
    counts = torch.arange(10, 110, 10)
    loss.set_class_counts(counts)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, target = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    partners = (images.flip(0), target.flip(0)) if mixing is not None and mixing.needs_partners else None

    def gradient(step: int) -> Tensor:
        if mixing is None:
            terms = loss_terms(loss, network(images), target)
        else:
            mixed = mixing(images, target, (0, 0, step, 0), counts, partners)
            terms = mixed_loss_terms(loss, network(mixed.images), mixed.target, mixed.other, mixed.weight)
        optimizer.zero_grad()
        total = reduce(add, terms.values())
        total.backward()
        return total

    found = []
    for step in range(steps):
        began = time.perf_counter()
        closure = partial(gradient, step)
        optimizer.step(sharpness_aware(closure, optimizer, 0.1, network) if kind == "SAM" else closure)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Print the seconds of each step and the ratios; exit with 1 if the target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    kinds: list[Mixing | Literal["SAM"] | None] = [None, Mixup(), CutMix(), Remix(), CMO(probability=1.0), "SAM"]
    found = [[seconds(kind, given.steps) for kind in kinds] for _ in range(given.rounds)]
    best = [min(column) for column in zip(*found, strict=True)]
    for kind, each in zip(kinds, best, strict=True):
        name = "plain" if kind is None else kind if kind == "SAM" else type(kind).__name__
        print(f"{name:<8} {1000 * each:7.1f} ms per step, {each / best[0]:.3f}")
    sys.exit(max(best[:-1]) > 1.1 * best[0] or best[-1] > 2.1 * best[0])


if __name__ == "__main__":
    main()
