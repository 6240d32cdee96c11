"""The cost of the lossy pixels of the JPEG copy of CIFAR-10, estimated by encoding the images again.

    python -m tests.benchmarks.gpu --prepare data/gpu  # once, where the data are: SCOR_TEST_DATA=...
    python -m tests.benchmarks.jpeg --data data/gpu --seeds 3

The copy does not have the official pixels, so the loss of the first encoding cannot be measured. Instead the images are
encoded a second time with the copy's own quality (75, colours at half the resolution), on a grid shifted by four pixels, so
that the second encoding loses information too. The same network is trained on both, on the same images in the same order.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import LongTail
from scor_lightning.models import CifarResNet
from scor_lightning.optim import CosineLR
from tests.benchmarks.gpu import CIFAR10FromArrays, decode, unpack_cifar

SHIFT = 4  # pixels, half a block of JPEG


def code_again(images: Any) -> Any:
    """Encode images as JPEG on a shifted grid; uint8 ``[N, 3, 32, 32]``."""
    coded = []
    for image in np.roll(images, (SHIFT, SHIFT), axis=(2, 3)):
        file = BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
        coded.append(decode(file.getvalue()))
    return np.roll(np.stack(coded), (-SHIFT, -SHIFT), axis=(2, 3))


def error(
    root: Path, seed: int, depth: int, epochs: int, lr_scheduler: Callable[[Any], Any] = CosineLR, lr_warmup: int = 0
) -> float:
    """Train a network; return its error on the balanced test set in percent."""
    seed_everything(seed, verbose=False)
    data = CIFAR10FromArrays(str(root), batch_size=128, val_fraction=0, imbalance=LongTail(100, subset="ldam_drw"))
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
    """Print the errors of both, and the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/gpu"), help="the folder of gpu.py --prepare")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=14, help="of the network")
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        once, twice = Path(folder, "once"), Path(folder, "twice")
        for root in (once, twice):
            root.mkdir()
        unpack_cifar(given.data, once)
        for split in ("train", "test"):
            arrays = np.load(once / f"{split}.npz")
            np.savez(twice / f"{split}.npz", images=code_again(arrays["images"]), targets=arrays["targets"])
        errors = []
        for seed in range(given.seeds):
            errors.append([error(root, seed, given.depth, given.epochs) for root in (once, twice)])
            print(f"seed {seed}: coded once {errors[-1][0]:.2f} %, twice {errors[-1][1]:.2f} %", flush=True)
    means = np.mean(errors, axis=0)
    print(f"mean: coded once {means[0]:.2f} %, twice {means[1]:.2f} %, ratio {means[1] / means[0]:.3f}")


if __name__ == "__main__":
    main()
