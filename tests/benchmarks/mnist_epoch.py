"""An epoch of MNIST through `scor-fit` against the reference package's `model_training`, side by side in one run.

    SCOR_TEST_DATA=... python tests/benchmarks/mnist_epoch.py [--rounds 3]

Both train the 784-128-10 network with SCoR on the same images: batch 64, Adam at its defaults. Ours has TensorBoard
logging, the progress bar and WeightSpectrum on; the time is that of the whole epoch, including the callback. The two
alternate, and the ratio is that of the medians, because other programs on the machine slow down both.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST


class EpochClock(Callback):
    """Seconds of each training epoch, from the first batch to the end of all callbacks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.seconds.append(time.perf_counter() - self.started)
        self.started = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        self.seconds.append(time.perf_counter() - self.started)


def ours(data: Path, epochs: int) -> tuple[list[float], torch.Tensor]:
    """Return the seconds of each epoch of the command line, and the indices of its training images."""
    from scor_lightning.cli.training import ScorCLI

    clock = EpochClock()

    started = Path.cwd()
    config = Path(__file__).resolve().parents[2] / "configs" / "mnist_scor.yaml"
    options = f"--trainer.max_epochs {epochs} --data.evaluation holdout --data.val_fraction 0 --data.root {data}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cli = ScorCLI(["--config", str(config), *options.split()])
        cli.trainer.callbacks.insert(0, clock)
        cli.fit()
        os.chdir(started)
    return clock.seconds, cli.datamodule.split("train")[1]


def reference(data: Path, index: torch.Tensor) -> float:
    """Return the seconds of one epoch of the reference package over the same images."""
    from scor.data import normalTransform
    from scor.losses import SCoR
    from scor.models import MLP

    images = Subset(MNIST(str(data), transform=normalTransform), index.tolist())
    loader = DataLoader(images, batch_size=64, shuffle=True)
    model = MLP()
    model.train()
    started = time.perf_counter()
    model.model_training(loader, SCoR(), torch.optim.Adam(model.parameters()), device="cpu")
    return time.perf_counter() - started


def main() -> None:
    """Print the seconds of both and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    data = Path(os.environ["SCOR_TEST_DATA"]).resolve()
    mine, theirs = [], []
    for _ in range(rounds):
        seconds, index = ours(data, epochs=3)
        mine += seconds[1:]
        theirs.append(reference(data, index))
    print(f"\n{len(index):,} images, batch 64, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"scor-fit        {statistics.median(mine):6.2f} s per epoch  {[round(s, 2) for s in mine]}")
    print(f"scor==0.2.2     {statistics.median(theirs):6.2f} s per epoch  {[round(s, 2) for s in theirs]}")
    print(f"ratio           {statistics.median(mine) / statistics.median(theirs):6.3f}  (at most 0.30)")


if __name__ == "__main__":
    main()
