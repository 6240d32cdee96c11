"""What the dashboard costs: an epoch of MNIST with all of it and with none, side by side in one run.

    OMP_NUM_THREADS=1 SCOR_TEST_DATA=... python tests/benchmarks/dashboard.py [--rounds 5]

Both train the 784-128-10 network on the same images and log loss and accuracy to TensorBoard. One has WeightSpectrum,
ClassReport and Dashboard, and all metrics; the other has no callback, and accuracy as its only metric. An epoch is from
its first batch to the end of all callbacks, validation included. The two take turns, and the ratio is that of the
medians. What comes once, the pictures when training starts and after the test, is told apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport, Dashboard, WeightSpectrum
from scor_lightning.datamodules import LongTail, MNISTDataModule
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import MLP


class Plain(ImageClassifier):
    """Measures loss and accuracy and nothing else."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        accuracy = MetricCollection({"accuracy": MulticlassAccuracy(10, average="micro", validate_args=False)})
        self.val_metrics, self.test_metrics = accuracy.clone("val/"), accuracy.clone("test/")

    def _log_evaluation(self, split, metrics, mean_loss):
        self.log_dict({f"{split}/loss": mean_loss.compute(), **metrics.compute()})
        metrics.reset()
        mean_loss.reset()


class EpochClock(Callback):
    """Seconds of each epoch; stands before the other callbacks, so that an epoch ends where the next one begins."""

    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer, pl_module):
        now = time.perf_counter()
        if trainer.current_epoch:
            self.seconds.append(now - self.started)
        self.started = time.perf_counter()


def run(kind, callbacks, data, epochs):
    """Give the seconds of the epochs, but the first and the last, and of the test."""
    seed_everything(0, verbose=False)
    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            callbacks=[clock, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = kind(MLP(num_classes=10), SCoRLoss(), optimizer=lambda p: torch.optim.Adam(p, fused=True))
        trainer.fit(model, data)
        started = time.perf_counter()
        trainer.test(model, data, verbose=False)
        return clock.seconds[1:], time.perf_counter() - started


def main() -> None:
    """Print the seconds of both and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    root = Path(os.environ["SCOR_TEST_DATA"]).resolve()
    seconds = {"plain": [], "dashboard": []}
    tests = {"plain": [], "dashboard": []}
    for _ in range(parser.parse_args().rounds):
        for name in seconds:
            data = MNISTDataModule(str(root), imbalance=LongTail(1.2))
            everything = [WeightSpectrum(), ClassReport(), Dashboard()] if name == "dashboard" else []
            epochs, test = run(ImageClassifier if everything else Plain, everything, data, epochs=6)
            seconds[name] += epochs
            tests[name].append(test)
    print(f"\n{int(data.class_counts.sum()):,} images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        print(f"{name:<10} {statistics.median(values):6.3f} s an epoch  {[round(s, 2) for s in values]}")
        print(f"{'':<10} {statistics.median(tests[name]):6.3f} s the test, with files and pictures")
    print(
        f"ratio      {statistics.median(seconds['dashboard']) / statistics.median(seconds['plain']):6.3f}  (at most 1.05)"
    )


if __name__ == "__main__":
    main()
