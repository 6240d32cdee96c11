"""ImageNet on the CPU: the loader against the reference's, and the share of SCoR in a training step.

    SCOR_TEST_DATA=... python -m tests.benchmarks.imagenet_loader [--rounds 5] [--batch 64]

1. Images per second of `ImageNetDataModule` against torchvision's ImageFolder with the transforms of the reference's
   imagenet.py, RandomResizedCrop to 224 and flip, with 1 and 2 workers, on 200 files of ImageNet, each read several
   times. The two alternate and the ratio is that of the best times, because other programs slow down both.
2. Milliseconds of SCoR's penalty, forward and backward, over 1,000 classes, against a training step of ResNet-50 at
   224 x 224 with cross entropy and SGD.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scor_lightning.functional import scor_penalty
from scor_lightning.models import TorchvisionBackbone
from tests.benchmarks.input import jpeg


def seconds(call: Callable[[], None], rounds: int) -> float:
    """Return the best of several times, after a warm-up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def share_of_a_step(batch: int) -> None:
    """Time the penalty and the step."""
    network = TorchvisionBackbone(num_classes=1000, arch="resnet50")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, target = torch.rand(batch, 3, 224, 224), torch.randint(1000, (batch,))
    logits = torch.randn(batch, 1000, requires_grad=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), target).backward()
        optimizer.step()

    def penalty() -> None:
        scor_penalty(logits).backward()

    whole, own = seconds(step, 2), seconds(penalty, 50)
    print(
        f"batch {batch}, 1,000 classes, {torch.get_num_threads()} threads: step of ResNet-50 {whole * 1e3:,.0f} ms, "
        f"SCoR {own * 1e3:.2f} ms: {own / whole:.4%} of it (at most 1 %)"
    )


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    sample = Path(os.environ["SCOR_TEST_DATA"]).resolve() / "imagenet-sample.tar"
    for workers in (1, 2):
        mine, theirs = jpeg(options.rounds, sample, workers)
        print(f"{workers} workers: {mine:7,.0f} images/s, reference {theirs:7,.0f}: {mine / theirs:5.2f} x", flush=True)
    share_of_a_step(options.batch)


if __name__ == "__main__":
    main()
